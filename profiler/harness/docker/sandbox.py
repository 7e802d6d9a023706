"""The Docker sandbox: the user's own `docker run`, with the recipe in place of `--privileged`.

It implements `Sandbox` (interface.py). Containers are made by the real client, so that traced run and reruns are
what the printed command does; the engine's API looks and cleans up.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from profiler.errors import HostError, ProfilerError
from profiler.harness.docker import cautions
from profiler.harness.docker.arguments import DockerRun, flag_words, parse
from profiler.harness.docker.engine import Engine
from profiler.harness.docker.files import Produced
from profiler.harness.docker.flags import SECCOMP_UNCONFINED, flags_of
from profiler.harness.docker.gate import (
    await_gate,
    environment_of,
    gate_flags,
    make_state_directory,
    remove_state_directory,
    throwaway,
    write_gate,
)
from profiler.harness.docker.grants import Grants, check_engine, check_user, find_grants, lsms_of
from profiler.harness.docker.image import Image, account, command_of, find_image, is_root, user_of, with_home
from profiler.harness.docker.labels import (
    denials_of,
    is_labelled,
    label,
    relabelled,
    relabelling,
    to_relabel,
    watchable,
)
from profiler.harness.docker.leftovers import clean_engine
from profiler.harness.docker.run import HeldRun, captured
from profiler.harness.docker.standard_input import Input
from profiler.harness.docker.system import engine_mounts, leaving_none
from profiler.harness.docker.volumes import Volumes
from profiler.harness.interface import Caught, Relabelled, Service, steering
from profiler.kernel.capabilities import CAPABILITIES, last_cap
from profiler.kernel.confinement import profile_of
from profiler.kernel.filters import filters_of
from profiler.model import (
    BindMount,
    Capability,
    Device,
    HostFacts,
    Moved,
    Outcome,
    Privilege,
    Recipe,
    SecurityOption,
    Syscalls,
    capability_names,
    needs_profile,
)

_grants: dict[tuple[str, ...], Grants] = {}  # by engine and what changes the answer: trying costs a start or more
_THROWAWAY_FLAGS = frozenset({"runtime", "platform", "userns"})  # the user's flags that change what is granted
_OUTPUT = int | IO[bytes] | None


class DockerSandbox:
    """Runs one `docker run` command line with any recipe.

    `profile_path` is the seccomp profile that the printed command names; `profile_of`, if set, gives the path of the
    profile to use for a recipe that is being tried.
    """

    name = "docker"

    def __init__(
        self,
        argv: tuple[str, ...],
        *,
        profile_path: str | None = None,
        profile_of: Callable[[Recipe], str] | None = None,
        stdin: int = 0,
        stdout: _OUTPUT = None,
        stderr: _OUTPUT = None,
    ) -> None:
        """Read the command line; the engine is looked for when it is first needed.

        `stdin`, `stdout` and `stderr` are the traced run's, None for our own. Raises UsageError for a command line that
        docker would not take, HostError for podman.
        """
        self._argv = argv
        self._run = parse(argv)
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self.profile_path = profile_path
        self.profile_of = profile_of
        self.expected: tuple[str, ...] = ()
        self.groups: tuple[str, ...] = ()
        self._filters: dict[frozenset[str], bytes | None] = {}
        self._profile_name = ""
        self._runs: list[HeldRun] = []
        self._reruns: set[str] = set()
        self._aborted = False
        self._relabelled: frozenset[str] = frozenset()

    # What is found once, when it is first asked for

    @functools.cached_property
    def _engine(self) -> Engine:
        check_user(os.geteuid())
        engine = Engine(self._run)
        try:
            check_engine(engine, userns=self._run.value("userns"))
            with suppress(ProfilerError):  # `doctor --clean` says why
                clean_engine(engine)
        except BaseException:
            engine.close()
            raise
        return engine

    @functools.cached_property
    def _image(self) -> Image:
        return find_image(self._engine, self._run)

    @functools.cached_property
    def _directory(self) -> Path:
        return make_state_directory()

    @functools.cached_property
    def _gate(self) -> Path:
        gate = write_gate(self._directory)
        if is_labelled(self._engine):
            label(gate)
        return gate

    @functools.cached_property
    def _input(self) -> Input:
        return Input(self._directory, self._stdin, wanted=self._run.is_set("interactive"))

    @functools.cached_property
    def _volumes(self) -> Volumes:
        return Volumes(self._engine, self._run)

    @functools.cached_property
    def _granted(self) -> Grants:
        engine = self._engine
        words = self._throwaway_words()
        key = (*engine.identity, *flag_words(flag for flag in self._run.flags if flag.name in _THROWAWAY_FLAGS))
        if key not in _grants:
            with ThreadPoolExecutor(1) as meanwhile:
                # What is asked for next: the engine starts two containers in little more time than one.
                asked = meanwhile.submit(self.filter_of, frozenset())
                _grants[key] = find_grants(engine, words)
                asked.exception()  # told when it is asked for again
        return _grants[key]

    def _throwaway_words(self) -> tuple[str, ...]:
        own = flag_words(flag for flag in self._run.flags if flag.name in _THROWAWAY_FLAGS)
        return (*own, "--network", "none", "--user", "0:0", *gate_flags(self._gate), self._image.name)

    # Sandbox

    def facts(self) -> HostFacts:
        """What this host and engine can do; `witnesses` is the pipeline's to fill.

        Raises HostError when there is no engine, or none whose containers can be watched from here.
        """
        known = CAPABILITIES[: last_cap() + 1]
        granted = self._granted.capabilities
        return HostFacts(
            kernel=platform.release(),
            engine=self.name,
            engine_version=self._engine.server_version,
            lsms=lsms_of(self._engine),
            witnesses=(),
            grantable=granted,
            not_granted=tuple(name for name in known if name not in granted),
            cgroup_version=int(self._engine.info.get("CgroupVersion") or 1),
        )

    def broad(self) -> Recipe:
        """Every privilege that this engine was seen to grant: the stand-in for `--privileged`."""
        return self._granted.recipe()

    def start(self, recipe: Recipe, *, quiet: bool = False) -> HeldRun:
        """Start the user's container with `recipe`, held at its gate, on our stdio.

        `quiet`: a run that is watched once more; it reads what a rerun reads and its output is thrown away.

        Raises UsageError for an unknown user or no command, Refused with the engine's words.
        """
        image, engine = self._image, self._engine
        run, moved = self._with_volumes("watched")
        argv = command_of(image, run)
        user = user_of(image, run)
        # A gate as another user could not be given a filter without no_new_privs, which would break sudo.
        own_user: tuple[str, ...] = () if is_root(user) else ("--user", "0:0")
        terminal = frozenset({"tty"} if quiet or self._input.has_no_terminal else ())
        hidden = {"entrypoint"} | (set() if is_root(user) else {"user"}) | terminal
        steered, kept = self._steerable(recipe, takes_ids=not is_root(user))
        # Nodes come and go (a partition, a plugged device): one that has gone must not keep the run from starting.
        present = frozenset(p for p in steered if not isinstance(p, Device) or Path(p.path).exists())
        present = watchable(engine, present)
        words = self._create_words(run.without(hidden), present, (*own_user, *gate_flags(self._gate)), command=False)
        container = engine.create(words)
        try:
            produced = Produced(engine, container, self.expected)
            with self._input.replayed() if quiet else self._input.fed() as fed:
                child = engine.attach(
                    container,
                    interactive=run.is_set("interactive"),
                    stdin=fed,
                    stdout=subprocess.DEVNULL if quiet else self._stdout,
                    stderr=subprocess.DEVNULL if quiet else self._stderr,
                    options=_client_options(run),
                    # Ctrl-C is ours to pass on; a client with a share in the terminal must be in its foreground.
                    own_group=quiet or not (run.is_set("interactive") or run.is_set("tty")),
                )
            try:
                init, gate = await_gate(engine, container, child)
                caught = replace(
                    self._caught(container, gate, argv, user),
                    capabilities=kept,
                    system=engine_mounts(self._run, gate) if recipe >= self.broad() else (),
                )
                held = HeldRun(engine, container, child, init, caught, produced, moved)
            except BaseException:
                child.kill()
                child.wait()
                raise
        except BaseException:
            with suppress(ProfilerError):
                engine.remove(container)
            raise
        self._runs.append(held)
        return held

    def rerun(self, recipe: Recipe, *, timeout: float | None, slot: int = 0, service: Service | None = None) -> Outcome:
        """Run the user's own command, untraced, with exactly `recipe`; `timeout` in seconds, then it is killed.

        `slot` names the copies of the user's volumes. A command with `-it` gets no terminal, as there is none to replay
        from. Raises Refused when the engine cannot make or start it.
        """
        engine = self._engine
        run, moved = self._with_volumes(f"rerun-{slot}")
        interactive = run.is_set("interactive")
        words = self._create_words(run.without({"tty"} if interactive else ()), recipe, (), command=True)
        ours = self.groups if any(isinstance(p, BindMount) for p in recipe) else ()
        with (
            leaving_none(ours),
            self._input.replayed() as stdin,
            throwaway(engine, words) as container,
            denials_of(engine, container) as denials,
        ):
            self._reruns.add(container)
            try:
                if self._aborted:
                    raise HostError("the rerun was given up")
                outcome = captured(
                    engine,
                    container,
                    interactive=interactive,
                    stdin=stdin,
                    timeout=timeout,
                    service=service,
                    expected=self.expected,
                    moved=moved,
                )
                return replace(outcome, denials=denials())
            finally:
                self._reruns.discard(container)

    @contextmanager
    def rehearse(self, recipe: Recipe) -> Iterator[tuple[int, int]]:
        """See `Sandbox`. An init of the engine's own (`--init`) is ended as by `docker stop`, its gate with it."""
        engine = self._engine
        hidden = {"entrypoint", "tty"} if self._run.is_set("interactive") else {"entrypoint"}
        words = self._create_words(self._run.without(hidden), recipe, gate_flags(self._gate), command=False)
        with throwaway(engine, words) as container:
            engine.start(container)
            init, gate = await_gate(engine, container)
            yield init, gate
            if init != gate:
                engine.stop(container)

    def abort(self) -> None:
        """See `Sandbox`. A container that is about to be started must not be: they are removed, not only killed."""
        self._aborted = True
        for container in tuple(self._reruns):
            with suppress(ProfilerError):
                self._engine.remove(container)

    @contextmanager
    def relabelled(self, types: frozenset[str]) -> Iterator[Relabelled]:
        """See `Sandbox`."""
        found = to_relabel(self._run, types) if is_labelled(self._engine) else ()
        targets = frozenset(mount.target for mount in found)
        copied = not any(mount.read_only for mount in found) and targets.isdisjoint(self._volumes.shared)
        self._relabelled = targets if copied else frozenset()
        try:
            yield Relabelled(tuple(" ".join(relabelling(mount).tokens) for mount in found), copied and bool(found))
        finally:
            self._relabelled = frozenset()

    def health_check(self) -> bool:
        """Whether the image or the command has one, and the command does not switch it off."""
        if self._run.is_set("no-healthcheck"):
            return False
        return bool(self._run.value("health-cmd")) or self._image.health_check

    def parallel(self) -> bool:
        """Whether several reruns may run at a time: no fixed name, port or address, and no place that both write."""
        return cautions.shares_nothing(self._run) and not self._volumes.shared and not self.groups

    def image(self) -> tuple[str, str]:
        """The image's name, as the user gave it, and its id."""
        return (self._image.name, self._image.id)

    def command(self) -> tuple[str, ...]:
        """The user's own command line, as given."""
        return self._argv

    def docker_args(self, recipe: Recipe) -> tuple[str, ...]:
        """The flags that replace `--privileged` for `recipe`. ValueError when it has calls and there is no profile."""
        return flags_of(recipe, self.profile_path or self._profile(recipe))

    def docker_command(self, recipe: Recipe) -> tuple[str, ...]:
        """The user's whole command line with exactly `recipe` in place of `--privileged` and its parts."""
        return self._run.where(lambda flag: not cautions.is_replaced(flag)).rendered(self.docker_args(recipe))

    def notes(self) -> tuple[str, ...]:
        """What of the user's flags is replaced, kept, or treated otherwise than `docker run` would."""
        volumes = self._volumes.notes() if "_volumes" in self.__dict__ else ()
        return (*cautions.notes(self._run), *volumes)

    def cautions(self) -> tuple[str, ...]:
        """What in the user's command no recipe can make safe."""
        return cautions.warnings(self._run)

    def filter_of(self, capabilities: frozenset[str]) -> bytes | None:
        """The seccomp filter (an array of `struct sock_filter`) that this engine installs for these capabilities.

        None when it installs none. Read from a container that holds the gate; HostError when it cannot be read.
        """
        if capabilities not in self._filters:
            flags = flags_of(frozenset(map(Capability, capabilities)))
            with throwaway(self._engine, (*flags, *self._throwaway_words())) as container:
                self._engine.start(container)
                _, gate = await_gate(self._engine, container)
                found = filters_of(gate)
                self._profile_name = profile_of(gate)
            # What the engine itself is confined by comes first (the oldest); its containers inherit it.
            self._filters[capabilities] = found[-1] if found else None
        return self._filters[capabilities]

    def confined_by(self) -> str:
        """See `Sandbox`. Learned from the same container as the filter."""
        self.filter_of(frozenset())
        return self._profile_name

    def close(self) -> None:
        """Remove everything of ours: containers, recorded input, the gate. Idempotent."""
        while self._runs:
            self._runs.pop().close()
        kept = self.__dict__
        if "_input" in kept:
            self._input.close()
        if "_directory" in kept:
            remove_state_directory(self._directory)
        if "_engine" in kept:
            with suppress(ProfilerError):  # an exception may have come between the engine's answer and us
                self._engine.remove_own()
            self._engine.close()
        if "_volumes" in kept:  # once no container has them
            self._volumes.close()

    # Its parts

    def _with_volumes(self, name: str) -> tuple[DockerRun, Moved]:
        """The user's command for one run: the very first has the user's volumes, every other copies, by this name."""
        if "_volumes" not in self.__dict__:
            self._volumes  # noqa: B018 - takes note of what they hold
            return self._run, ()
        try:
            run, moved = self._volumes.fresh(name)
            return relabelled(run, self._relabelled), moved
        except (OSError, subprocess.SubprocessError) as error:
            raise HostError(
                f"the volumes cannot be copied for a run: {error}", "see that there is room for it"
            ) from error

    def _create_words(
        self, run: DockerRun, recipe: Recipe, extra: tuple[str, ...], *, command: bool
    ) -> tuple[str, ...]:
        """The words of `docker create`: the user's flags without those that are ours, the recipe's, the image."""
        own = run.without(cautions.OURS).where(lambda flag: not cautions.is_replaced(flag))
        recipe_flags = flags_of(recipe, self._profile(recipe))
        return (*flag_words(own.flags), *recipe_flags, *extra, run.image, *(run.command if command else ()))

    def _steerable(self, recipe: Recipe, *, takes_ids: bool) -> tuple[Recipe, frozenset[str] | None]:
        """`recipe` with what its gate needs to be steered, and the capabilities to be left with (None: all).

        The engine's default filter opens calls with the capabilities that are added, so the recipe's own is named.
        """
        added = steering(recipe, self._granted.capabilities, takes_ids=takes_ids)
        if not added:
            return recipe, None
        kept = capability_names(recipe)
        more: set[Privilege] = set(map(Capability, added))
        unconfined = SecurityOption(SECCOMP_UNCONFINED) in recipe
        if not unconfined and self.profile_of is not None and self.filter_of(kept) is not None:
            more.add(SecurityOption(f"seccomp={self.profile_of(recipe)}"))
            recipe = frozenset(p for p in recipe if not isinstance(p, Syscalls))
        return recipe | more, kept

    def _profile(self, recipe: Recipe) -> str | None:
        """The seccomp profile for a recipe that says anything of calls."""
        if not needs_profile(recipe):
            return None
        return self.profile_of(recipe) if self.profile_of is not None else self.profile_path

    def _caught(self, container: str, gate: int, argv: tuple[str, ...], user: str) -> Caught:
        env = environment_of(gate)
        if is_root(user):
            return Caught(gate, argv, env)
        found = account(Path(f"/proc/{gate}/root"), user, self._run.values("group-add"))
        given = self._engine.inspect(container)["Config"].get("Env") or ()
        if not any(entry.startswith("HOME=") for entry in given):
            env = with_home(env, found.home)
        return Caught(gate, argv, env, found.credentials)


def _client_options(run: DockerRun) -> tuple[str, ...]:
    """The user's flags that `docker start` takes and `docker create` does not."""
    keys = run.value("detach-keys")
    return () if keys is None else ("--detach-keys", keys)
