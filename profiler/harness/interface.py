"""What every place to run a workload offers. The pipeline and the verifier know only this."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from profiler.harness.service import Running, Service
from profiler.kernel.mountinfo import Mount
from profiler.model import HostFacts, Outcome, Privilege, Recipe, capability_names


@dataclass(frozen=True)
class Credentials:
    """The ids that the workload starts with when it is not root: taken by the gate before the workload is executed."""

    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Caught:
    """A workload held at its gate, before its first instruction.

    `pid` is the gate's process as this host numbers it; `argv` what it shall become (argv[0] without a slash is looked
    up in PATH of `env`, in the process's own root); `credentials` None means that it stays as it is. `capabilities` are
    those that it shall have of what it holds, where it was started with more so that it can be steered; None: all.
    `system` are the mounts below its /sys that it shall find writable, as `--privileged` would have them.
    """

    pid: int
    argv: tuple[str, ...]
    env: tuple[str, ...]
    credentials: Credentials | None = None
    capabilities: frozenset[str] | None = None
    system: tuple[Mount, ...] = ()


def steering(recipe: Recipe, grantable: frozenset[str], *, takes_ids: bool) -> frozenset[str]:
    """The capabilities beyond `recipe` with which a gate must start to be steered, as far as they can be granted.

    SYS_ADMIN to install a filter without no_new_privs, SETPCAP to drop it again, and to become an ordinary user
    (`takes_ids`) SETUID, SETGID, and CHOWN for the standard streams.
    """
    needed = frozenset({"SYS_ADMIN", "SETPCAP"} | ({"SETUID", "SETGID", "CHOWN"} if takes_ids else set()))
    return (needed & grantable) - capability_names(recipe)


class TracedRun(Protocol):
    """A workload that was started at its gate, with its stdio connected to ours."""

    @property
    def caught(self) -> Caught:
        """The held process."""

    @property
    def running(self) -> Running:
        """What can be asked of the run while it goes on. Safe from any thread."""

    def wait(self, deadline: float | None = None) -> Outcome:
        """Wait for the end of the whole workload (after the tracer let it go) and return how it ended.

        `deadline` is on the monotonic clock, in seconds; when it passes the workload is stopped as its engine would
        stop it and the outcome says `timed_out`.
        """

    def stop(self) -> None:
        """Stop it as its engine would (SIGTERM, then SIGKILL); `wait` returns soon after. Safe from any thread."""

    def lost(self) -> bool:
        """Whether the engine that runs it has gone away, so that nobody would tell its end. Safe from any thread."""

    def close(self) -> None:
        """Remove everything of ours that the run still holds (container, mounts, files). Idempotent."""


@dataclass(frozen=True)
class Relabelled:
    """The user's flags with which the engine gives files the containers' label, written out, and whether reruns have
    such copies: the user's own files are never relabelled."""

    flags: tuple[str, ...] = ()
    tried: bool = False


class Sandbox(Protocol):
    """Where a workload runs: Docker, or the embedded sandbox."""

    name: str  # "docker" or "native": the manifest's workload.engine
    profile_of: Callable[[Recipe], str] | None  # the seccomp profile to use for a recipe that opens system calls
    expected: tuple[str, ...]  # files, as the workload names them, that an outcome shall tell of
    profile_path: str | None  # the one that the printed command names
    groups: tuple[str, ...]  # control groups that the workload makes, by their paths: reruns leave none of them behind

    def facts(self) -> HostFacts:
        """What this host and engine can do."""

    def broad(self) -> Recipe:
        """Every privilege that can be granted here: the stand-in for `--privileged` in the traced run."""

    def start(self, recipe: Recipe, *, quiet: bool = False) -> TracedRun:
        """Start the workload with `recipe`, held at its gate, on our own stdin, stdout and stderr.

        `quiet`: a run that is watched once more; its input is replayed and its output is thrown away. Where `recipe`
        lacks what steering needs, the gate has it all the same, and `Caught.capabilities` says what the workload shall
        be left with; the engine's filter is the recipe's.
        """

    def rerun(self, recipe: Recipe, *, timeout: float | None, slot: int = 0, service: Service | None = None) -> Outcome:
        """Run the user's own command untraced with exactly `recipe`, output captured, and wait for its end.

        After `timeout` seconds it is killed. A `service` is watched instead, and killed when that says so.
        `slot` tells parallel reruns apart. Standard input is replayed from what the first run read.
        """

    def rehearse(self, recipe: Recipe) -> AbstractContextManager[tuple[int, int]]:
        """Start the workload's container exactly as `rerun` does, but for the program, which is the gate and stays it.

        Gives the pids of its first process and of the gate; the container is ended and removed with the block. Raises
        HostError where no engine starts anything.
        """

    def relabelled(self, types: frozenset[str]) -> AbstractContextManager[Relabelled]:
        """As long as the block lasts, reruns have the user's files of these SELinux types with the containers' label,
        where the engine can give it to copies. Gives nothing where there are no such files, or no engine."""

    def health_check(self) -> bool:
        """Whether the engine makes a health check of the workload."""

    def parallel(self) -> bool:
        """Whether several reruns may run at a time (no fixed name, no published port, no shared volume)."""

    def image(self) -> tuple[str, str]:
        """The image's name and id; two empty strings outside an engine."""

    def command(self) -> tuple[str, ...]:
        """The user's own command, as given."""

    def docker_args(self, recipe: Recipe) -> tuple[str, ...]:
        """The flags that replace `--privileged` for `recipe` (also for the embedded sandbox, as advice)."""

    def docker_command(self, recipe: Recipe) -> tuple[str, ...]:
        """The whole command, ready to run, with exactly `recipe`; empty outside an engine."""

    def notes(self) -> tuple[str, ...]:
        """One line each: what is done otherwise than the user's command says, or than this host could do it."""

    def cautions(self) -> tuple[str, ...]:
        """One line each: what no recipe can make safe in the user's command."""

    def filter_of(self, capabilities: frozenset[str]) -> bytes | None:
        """The seccomp filter (an array of `struct sock_filter`) that this engine installs for a container with these
        capabilities by default; None where there is none."""

    def confined_by(self) -> str:
        """The AppArmor profile that confines the containers of this engine by default; empty where none does."""

    def abort(self) -> None:
        """End the reruns that other threads still wait for, and refuse to start further ones. Safe from any thread."""

    def close(self) -> None:
        """Remove everything of ours. Idempotent."""


Announce = Callable[[str], None]  # one line for the user's eyes; the caller prints it on stderr
__all__ = ["Announce", "Caught", "Credentials", "Privilege", "Sandbox", "Service", "TracedRun", "steering"]
