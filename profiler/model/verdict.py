"""What is made of a trace: requirements, reruns, and what these showed."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from profiler.model.privileges import AllowList, Privilege, Recipe
from profiler.model.trace import Evidence, LabelDenial, Stopped


class Doubt(enum.IntEnum):
    """How sure the trace alone is that a workload fails without a requirement. Reruns settle what is doubtful."""

    CERTAIN = 0  # the call that it is for would be refused, and programs do not survive that refusal
    LIKELY = 1  # the call would be refused; most programs give up
    EVEN = 2  # the call would be refused; about as many programs give up as carry on
    DOUBTFUL = 3  # the call would be refused or do less; most programs carry on
    NEGLIGIBLE = 4  # the check never changes a result on its own (memory accounting, a probe)


class Status(enum.StrEnum):
    """What is known of a requirement after the reruns."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    UNPROVEN = "unproven"


@dataclass(frozen=True)
class Requirement:
    """What one observed action needs: any one of `alternatives`, each a set of privileges.

    `privilege` is the one that the recipe answers it with (the manifest's name for the row).
    """

    alternatives: tuple[frozenset[Privilege], ...]
    reason: str
    doubt: Doubt
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class JudgedRequirement:
    """A requirement, the privilege that answers it, and what the reruns say of it."""

    privilege: Privilege
    requirement: Requirement
    status: Status


@dataclass(frozen=True)
class Written:
    """All that a run wrote to a stream: how many bytes, and their digest."""

    size: int
    digest: str


Moved = tuple[tuple[str, str], ...]
"""Paths of this host in whose place a run had others: (the user's, the run's)."""


@dataclass(frozen=True)
class Outcome:
    """One run of the workload: how it ended. `stdout` and `stderr` hold their last 64 KiB where captured, `written`
    stands for all of the first.

    `timed_out`: it had to be stopped, at its limit or because it is a service; a service's end is told by `stopped`.
    `files` are those that were asked for: path to digest, empty for one that the run has not produced. `moved` are the
    user's places that stood elsewhere for this run; they stay there until the next run. `denials` are SELinux's, each
    once, in their order.
    """

    exit_code: int
    seconds: float
    timed_out: bool = False
    stdout: bytes = b""
    stderr: bytes = b""
    stopped: Stopped | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    written: Written | None = None
    moved: Moved = ()
    denials: tuple[LabelDenial, ...] = ()

    def last_words(self) -> str:
        """The last line that the run wrote, as `: line`, its errors first; empty when it wrote none.

        Indented lines go on from the one before, which is the one that tells (mount(8) ends with a hint at dmesg).
        """
        for stream in (self.stderr, self.stdout):
            lines = [line.rstrip() for line in stream.decode("utf-8", "replace").splitlines() if line.strip()]
            if lines:
                told = [line for line in lines if not line[0].isspace()] or lines
                return ": " + told[-1].strip()[:160]
        return ""


@dataclass(frozen=True)
class Rerun:
    """One rerun with exactly `recipe`, and whether it passed. `purpose` says why it was made, `failure` why it did not
    pass, in a few words."""

    recipe: Recipe
    outcome: Outcome
    passed: bool
    purpose: str
    failure: str = ""


@dataclass(frozen=True)
class Observed:
    """What an allow-list holds and why: calls of the workload with the program that was seen to make each first, calls
    that the engine's runtime makes before it, and those that happen or not with timing, each with its reason. `i386`
    are those that 32-bit programs of the workload make, by the names of their own table."""

    workload: Mapping[str, str]
    runtime: tuple[str, ...]
    incidental: Mapping[str, str]
    i386: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(sorted({*self.workload, *self.runtime, *self.incidental, *self.i386}))

    @property
    def bound(self) -> AllowList:
        """The list for a recipe."""
        return AllowList(self.names, bool(self.i386))


@dataclass(frozen=True)
class OwnProfile:
    """An AppArmor profile with which the workload passes too, in place of `apparmor=unconfined`: its name, its file,
    and what it allows beyond the engine's own profile, in a few words each."""

    name: str
    file: str
    allows: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What the reruns showed.

    `optional` are privileges that some call asked for, without which the workload still passes, each with what it was
    asked for, `kept` those that the recipe holds all the same; `passes` what a rerun had to fulfil, in words; `minimal`
    is True only when each member's removal was seen to fail and nothing was lost. `observed` says what the recipe's
    allow-list of system calls holds, where it has one.
    """

    recipe: Recipe
    verified: bool
    minimal: bool
    runs: tuple[Rerun, ...]
    optional: Mapping[Privilege, str] = field(default_factory=dict)
    denials: Mapping[Privilege, str] = field(default_factory=dict)
    passes: tuple[str, ...] = ()
    kept: Recipe = frozenset()
    observed: Observed | None = None


@dataclass(frozen=True)
class HostFacts:
    """What this host and engine can do, as found by probing. `not_granted` are capabilities nobody here can grant."""

    kernel: str
    engine: str
    engine_version: str
    lsms: tuple[str, ...]
    witnesses: tuple[str, ...]
    grantable: frozenset[str]
    not_granted: tuple[str, ...]
    cgroup_version: int = 0
