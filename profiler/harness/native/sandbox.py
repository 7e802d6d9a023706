"""The embedded sandbox: a command on this host's own files, in namespaces of its own, without any engine.

What a workload sees: the host's file systems below private layers (nothing that it writes stays), no service of the
host (a socket of the host that is seen through a layer has no listener), a loopback interface alone (unless the network
is the host's), and below /dev what the recipe names. Both runs start from the same state and the host does not change,
but for what no namespace holds: devices, modules, the clock. Kernel parameters of the host are read-only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from pathlib import Path

from profiler import __version__
from profiler.errors import HostError, UsageError
from profiler.harness.docker.flags import flags_of
from profiler.harness.interface import Caught, Relabelled, Service, steering
from profiler.harness.loops import remove_layers
from profiler.harness.native import cgroups, devices
from profiler.harness.native import mounts as host_mounts
from profiler.harness.native.run import Helper, NativeRun, has_terminal
from profiler.harness.native.spec import KILL, Spec
from profiler.harness.stdin import Spool
from profiler.kernel.capabilities import last_cap, name_of, sets_of
from profiler.kernel.mountinfo import mounts_of
from profiler.leftovers import DISK, STATE, is_leftover, owner_tag
from profiler.model import Capability, HostFacts, Outcome, Recipe, Syscalls, capability_names

# Who finds these takes the host's service for one that can be reached, and waits for its answer: libdevmapper for udev
# (a semaphore that only the host's udev could raise), packages' scripts for systemd.
_UNREACHABLE = ("/run/udev/control", "/run/systemd/system", "/run/systemd/private")
_RUNS = count()


class NativeSandbox:
    """Implements `Sandbox` for `argv`, run in the directory `cwd` with the environment `env`.

    `network` is `private` (a loopback interface and nothing else) or `host`. Raises HostError when not root.
    """

    name = "native"

    def __init__(self, argv: Sequence[str], *, cwd: str, env: Mapping[str, str], network: str = "private") -> None:
        if os.geteuid() != 0:
            raise HostError("the embedded sandbox needs root", "run capprofile with sudo, or profile a docker command")
        if network not in ("private", "host"):
            raise UsageError(f"unknown network: {network}", "use private or host")
        if not argv or not argv[0]:
            raise UsageError("no command is given", "capprofile run -- COMMAND ARG…")
        self.profile_of: Callable[[Recipe], str] | None = None  # there is no filter here, so there is none to open
        self.profile_path: str | None = None
        self.expected: tuple[str, ...] = ()
        self.groups: tuple[str, ...] = ()
        self._argv = tuple(argv)
        self._cwd = cwd
        self._env = tuple(env.items())
        self._private_network = network == "private"
        self._nodes = devices.host_nodes()
        self._home = STATE / f"{owner_tag()}-native-{next(_RUNS)}"
        self._home.mkdir(mode=0o700, parents=True)
        self._spool = Spool(self._home)
        self._run: NativeRun | None = None
        self._reruns: set[Helper] = set()
        self._aborted = False
        self._notes: tuple[str, ...] = ()

    def facts(self) -> HostFacts:
        """What this host can do: everything that this process may do itself."""
        grantable = sets_of().bounding & sets_of().permitted
        known = (name_of(number) for number in range(last_cap() + 1))
        return HostFacts(
            kernel=os.uname().release,
            engine=self.name,
            engine_version=__version__,
            lsms=_lsms(),
            witnesses=(),
            grantable=grantable,
            not_granted=tuple(name for name in known if name not in grantable),
            cgroup_version=2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1,
        )

    def broad(self) -> Recipe:
        """Every capability that we have and every device node that the host has."""
        capabilities = frozenset(Capability(name) for name in self.facts().grantable)
        return capabilities | devices.broad_devices(self._nodes)

    def start(self, recipe: Recipe, *, quiet: bool = False) -> NativeRun:
        """Start the workload with `recipe`, held at its gate, on our stdio (`quiet`: on what a rerun would read, and
        its output is thrown away). The run before is closed. Raises HostError if that cannot be."""
        if self._run is not None:
            self._run.close()
        added = steering(recipe, self.facts().grantable, takes_ids=False)
        kept = capability_names(recipe) if added else None
        recipe |= frozenset(map(Capability, added))
        if quiet:
            with self._spool.replay() as replayed:
                helper = self._spawn(recipe, replayed.fileno(), subprocess.DEVNULL, at_gate=True, own_session=True)
        else:
            with self._spool.feed() as fed:
                helper = self._spawn(recipe, fed, None, at_gate=True, own_session=False)
        env = tuple(f"{name}={value}" for name, value in self._env)
        self._run = NativeRun(helper, Caught(helper.workload, self._argv, env, capabilities=kept))
        return self._run

    def rerun(self, recipe: Recipe, *, timeout: float | None, slot: int = 0, service: Service | None = None) -> Outcome:
        """Run the command untraced with `recipe` and wait, at most `timeout` seconds, for its end.

        Output is captured, standard input replayed. It has a session of its own: there is no terminal to share.
        """
        with self._spool.replay() as stdin:
            helper = self._spawn(recipe, stdin.fileno(), subprocess.PIPE, at_gate=False, own_session=True, slot=slot)
        self._reruns.add(helper)
        try:
            if self._aborted:
                raise HostError("the rerun was given up")
            return helper.capture(timeout, service)
        finally:
            self._reruns.discard(helper)
            helper.close()

    def rehearse(self, recipe: Recipe) -> AbstractContextManager[tuple[int, int]]:
        """There is no engine whose runtime could be watched."""
        raise HostError("the embedded sandbox has no engine", "profile a docker run")

    def abort(self) -> None:
        """See `Sandbox`."""
        self._aborted = True
        for helper in tuple(self._reruns):
            helper.say(KILL)

    @contextmanager
    def relabelled(self, types: frozenset[str]) -> Iterator[Relabelled]:
        """See `Sandbox`: there is no engine to label anything."""
        yield Relabelled()

    def health_check(self) -> bool:
        """There is no engine to make one."""
        return False

    def parallel(self) -> bool:
        """Reruns share nothing but the host's network, if that."""
        return self._private_network

    def image(self) -> tuple[str, str]:
        """There is none."""
        return "", ""

    def command(self) -> tuple[str, ...]:
        """The user's own command, as given."""
        return self._argv

    def docker_args(self, recipe: Recipe) -> tuple[str, ...]:
        """The flags with which a container would get `recipe`."""
        return flags_of(frozenset(privilege for privilege in recipe if not isinstance(privilege, Syscalls)))

    def docker_command(self, recipe: Recipe) -> tuple[str, ...]:
        """There is none: no image holds this host's files."""
        return ()

    def filter_of(self, capabilities: frozenset[str]) -> bytes | None:
        """The embedded sandbox installs no filter."""
        return None

    def confined_by(self) -> str:
        """The embedded sandbox confines by no profile."""
        return ""

    def notes(self) -> tuple[str, ...]:
        """What the last run's sandbox lacks or could not hold to, a line each."""
        return self._notes

    def cautions(self) -> tuple[str, ...]:
        """Nothing: the sandbox keeps the workload from the host."""
        return ()

    def close(self) -> None:
        """End the traced run, if it still goes on, and remove our files. Idempotent."""
        if self._run is not None:
            self._run.close()
        self._spool.close()
        shutil.rmtree(self._home, ignore_errors=True)
        with suppress(OSError):  # another capprofile may be using it
            DISK.rmdir()

    def _spawn(
        self, recipe: Recipe, stdin: int, output: int | None, *, at_gate: bool, own_session: bool, slot: int = 0
    ) -> Helper:
        """Start a helper for `recipe` and wait until it holds the workload. Privileges of engines mean nothing here."""
        provision = devices.provide(recipe, self._nodes)
        name = f"{owner_tag()}-{slot}-{next(_RUNS)}"
        stores = _make_stores(name)
        spec = Spec(
            argv=self._argv,
            env=self._env,
            cwd=self._cwd,
            capabilities=tuple(sorted(capability_names(recipe))),
            nodes=provision.nodes,
            links=provision.links,
            device_rules=provision.rules,
            private_network=self._private_network,
            at_gate=at_gate,
            own_session=own_session,
            foreground=not own_session and has_terminal(),
            name=name,
            stores=stores,
            hidden=(str(STATE), str(DISK), *_UNREACHABLE),
            expected=self.expected,
        )
        helper = Helper(spec, stdin, output)
        self._notes = helper.notes
        return helper


def clean_leftovers() -> tuple[str, ...]:
    """Remove the files and control groups of owners that are gone; returns their paths. HostError for what stays.

    Mounts and processes are never left: they end with the sandbox's init.
    """
    directories = [path for base in (DISK, STATE) if base.is_dir() for path in base.iterdir() if is_leftover(path.name)]
    for directory in directories:
        remove_layers(directory)
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:  # as it should be
            continue
        except OSError as error:
            raise HostError(f"{directory} cannot be removed: {error.strerror}", "remove it by hand") from error
    groups = cgroups.leftovers(host_mounts.visible(mounts_of()), is_leftover)
    cgroups.remove(groups)
    return tuple(str(path) for path in (*directories, *groups) if not path.exists())


def _make_stores(name: str) -> tuple[str, ...]:
    """The directories for one run's layers, best first. HostError where none can be made."""
    made = []
    for base in (DISK, STATE):
        with suppress(OSError):  # a read-only /var
            (base / name).mkdir(mode=0o700, parents=True)
            made.append(str(base / name))
    if not made:
        raise HostError(f"neither {DISK} nor {STATE} can be written", "make one of them a writable directory")
    return tuple(made)


def _lsms() -> tuple[str, ...]:
    with suppress(OSError):
        return tuple(Path("/sys/kernel/security/lsm").read_text(encoding="ascii").strip().split(","))
    return ()
