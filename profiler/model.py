"""The frozen types that pass between the rooms. Imports nothing of ours.

The way of the data: a harness runs a workload under a tracer, which returns a `Trace`; the synthesizer turns it into
`Requirement`s and a `Recipe` (a set of `Privilege`s); the verifier reruns with exactly that set and returns a
`Verdict`; the report renders all of it as the manifest.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

# --------------------------------------------------------------------------------------------------------------------
# Privileges: everything that `--privileged` hands out has one type


@dataclass(frozen=True, order=True)
class Capability:
    """A capability by its name without `CAP_`, as Docker spells it: `SYS_ADMIN`."""

    name: str

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return self.name


@dataclass(frozen=True, order=True)
class Device:
    """A device node that must exist below /dev, with the access used: a subset of `rwm`, in this order."""

    path: str
    access: str = "rwm"

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return f"{self.path}:{self.access}"


@dataclass(frozen=True, order=True)
class DeviceClass:
    """A pool of nodes of which any may be used in the next run (loop, tty, nbd): `kind` is `b` or `c`.

    `minor` None means every minor, a negative `major` every major. `paths` are the nodes present on this host, which
    the recipe lists one by one, since the engine creates none from a rule.
    """

    kind: str
    major: int
    minor: int | None = None
    access: str = "rwm"
    paths: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        major = "*" if self.major < 0 else self.major
        minor = "*" if self.minor is None else self.minor
        return f"{self.kind} {major}:{minor} {self.access}"


@dataclass(frozen=True, order=True)
class Syscalls:
    """Calls that the engine's default filter denies and that a profile of our own opens again."""

    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return "seccomp:" + ",".join(self.names)


@dataclass(frozen=True, order=True)
class AllowList:
    """No privilege but a bound: only these system calls may be made, as far as the recipe's filter allows them.

    `i386` tells that some were made by the table of 32-bit programs. A profile has one rule for a name in every table.
    """

    names: tuple[str, ...]
    i386: bool = False

    @property
    def label(self) -> str:
        """How the manifest names it."""
        return "seccomp:observed"


@dataclass(frozen=True, order=True)
class SecurityOption:
    """A `--security-opt` that switches a protection off: `apparmor=unconfined`, `label=disable`,
    `systempaths=unconfined`, `seccomp=unconfined`, `writable-cgroups=true`."""

    option: str

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return self.option


@dataclass(frozen=True, order=True)
class Sysctl:
    """A namespaced kernel parameter that the engine can set before the container starts (`--sysctl`)."""

    key: str
    value: str

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return f"sysctl:{self.key}={self.value}"


@dataclass(frozen=True, order=True)
class BindMount:
    """A file or tree of the host's /sys, writable in the container at the same path (`--volume PATH:PATH`), where no
    flag but `--privileged` would make the container's own writable.

    `host_groups`: together with the host's cgroup namespace, as the tree is one of control groups and the container
    would have a namespace of its own (`--cgroupns host`).
    """

    path: str
    host_groups: bool = False

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return f"volume:{self.path}"


Privilege = Capability | Device | DeviceClass | Syscalls | AllowList | SecurityOption | Sysctl | BindMount
Recipe = frozenset[Privilege]


def capability_names(recipe: Recipe) -> frozenset[str]:
    """A recipe's capabilities, without `CAP_`."""
    return frozenset(privilege.name for privilege in recipe if isinstance(privilege, Capability))


def opened_calls(recipe: Recipe) -> frozenset[str]:
    """The system calls that a recipe opens beyond the engine's own filter."""
    return frozenset(name for privilege in recipe if isinstance(privilege, Syscalls) for name in privilege.names)


def only_calls(recipe: Recipe) -> AllowList | None:
    """The system calls that a recipe allows at most; None where it sets no bound. It has one bound at most."""
    return next((privilege for privilege in recipe if isinstance(privilege, AllowList)), None)


def needs_profile(recipe: Recipe) -> bool:
    """Whether a recipe says anything of single system calls, which takes a seccomp profile."""
    return any(isinstance(privilege, Syscalls | AllowList) for privilege in recipe)


# --------------------------------------------------------------------------------------------------------------------
# What a trace holds


@dataclass(frozen=True)
class Process:
    """Who did it. `pid` is the host's; `chain` the programs of its parents, nearest first; the workload's first process
    has none. `uid` is the effective user, `real_uid` the real one where that is known to be another."""

    pid: int
    exe: str
    argv: tuple[str, ...] = ()
    uid: int = -1
    chain: tuple[str, ...] = ()
    real_uid: int = -1


@dataclass(frozen=True)
class KernelCheck:
    """One kind of capability check (kernel function `cap_capable`) that the kernel made for the workload.

    `site` is the first kernel function above the checking helpers (`setattr_prepare`, `security_vm_enough_memory_mm`),
    `stack` the functions from the check to the system call's entry, nearest first. `borrowed`: the check was made with
    credentials that are not the task's own (overlayfs uses its mounter's, netlink its opener's, /proc files their
    opener's). `foreign_namespace`: it was against another user namespace than the container's own. `from_above`: and it
    was granted to a credential of the container's own, either to the other's owner or to who holds the capability.
    """

    capability: str
    granted: bool
    site: str
    stack: tuple[str, ...] = ()
    borrowed: bool = False
    foreign_namespace: bool = False
    from_above: bool = False


@dataclass(frozen=True)
class Observation:
    """Equal events, counted: a system call of one program, or checks made outside any call that was stopped.

    `call` is the call's name (None: no system call was in the stack, as in an io_uring worker). `args` are its
    arguments rendered for people; empty where the call was not stopped. `result` is the kernel's answer (negative errno
    on failure), None where it is not known. `path` is the file that the call was about, as the process sees it.
    """

    call: str | None
    args: tuple[str, ...]
    result: int | None
    path: str | None
    process: Process
    checks: tuple[KernelCheck, ...] = ()
    count: int = 1


@dataclass(frozen=True)
class DeviceUse:
    """A device node that the workload opened, made or mounted, with the access it used (subset of `rwm`).

    `made`: the workload made the node itself with mknod (then only a cgroup rule and MKNOD help, not `--device`).
    `bound`: it was there, but this host has no such node under this path: a volume or bind mount brought it, and all
    that it lacks without every device is a cgroup rule.
    """

    path: str
    kind: str
    major: int
    minor: int
    access: str
    process: Process
    made: bool = False
    count: int = 1
    bound: bool = False


@dataclass(frozen=True)
class RawCall:
    """A call as a seccomp filter sees it: number and the arguments that the filter looks at (others are 0).

    `shown` are the arguments as people read them, and `path` the file, of the first such call.
    """

    name: str
    number: int
    args: tuple[int, int, int, int, int, int]
    process: Process
    result: int | None = None
    count: int = 1
    shown: tuple[str, ...] = ()
    path: str | None = None


@dataclass(frozen=True)
class SystemWrite:
    """A path below /sys that the workload wrote to, or a control group that it made, where a container's mount is
    read-only unless it is privileged.

    `place` is what of this host's stands for it: the file itself, for a control group the tree of its hierarchy; empty
    where this host has nothing like it (a device of the container's own network). `mount` is where the file system is
    mounted; `doubtful`: it is another mount there, a copy in a namespace of the workload's or one that it has made.
    `own_groups`: the run had a cgroup namespace of its own. `made`: a new group.
    """

    place: str
    mount: str
    doubtful: bool = False
    own_groups: bool = False
    made: bool = False


@dataclass(frozen=True)
class LabelDenial:
    """What SELinux denied: `permissions` on something of the class `tclass`, by the contexts of both sides.

    `process` has the program by its name alone where no more is known (15 bytes at most). `path` is the file as the
    process sees it, or its name alone (without a slash in it, or `/` for the root of a file system); None: about none.
    """

    permissions: tuple[str, ...]
    tclass: str
    scontext: str
    tcontext: str
    path: str | None
    process: Process
    count: int = 1


def type_of(context: str) -> str:
    """A context's type: `container_t` of `system_u:system_r:container_t:s0:c1,c2`."""
    fields = context.split(":")
    return fields[2] if len(fields) > 2 else context


Evidence = Observation | DeviceUse | RawCall | LabelDenial


@dataclass(frozen=True)
class Called:
    """The system calls of a workload by name, each with the program that was seen to make it first (empty: unknown).

    `programs` are by the table of x86-64, `i386` by that of 32-bit programs. `lost` counts what was not seen; `foreign`
    tells of calls by another table (x32), which are not among these names.
    """

    programs: Mapping[str, str]
    lost: int = 0
    foreign: bool = False
    i386: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stopped:
    """A service that still ran when it was to be stopped.

    `complaint` is what was wrong with it then, in a few words, empty when nothing was, and `hint` what may mend it;
    `healthy` tells that its health check passed.
    """

    complaint: str = ""
    healthy: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Refusal:
    """A call that was refused for want of `capability`, and was then made again with it; or one that has succeeded only
    because the run's permitted sets hold everything (then none of its checks was refused).

    `observation` is the call as it was refused, `again` what the kernel answered in the end (negative errno on
    failure); the call may have asked for more than one capability, each of which is a refusal of its own.
    """

    capability: str
    observation: Observation
    again: int


@dataclass(frozen=True)
class Denial:
    """What a run was denied on purpose: what was given in the end, one capability at a time, and the checks (as told by
    the kernel, refused) of capabilities that the task would have held and that were not given for them."""

    refusals: tuple[Refusal, ...]
    withheld: frozenset[KernelCheck]


@dataclass(frozen=True)
class Trace:
    """What one traced run showed. `losses` counts, by name, what was not seen (empty: nothing was lost).

    `raw_calls` are the calls that the engine's default filter may deny; `notes` are one-line facts worth showing
    (a nested tracer was seen, an interpreter of 32-bit calls, …). `interrupted` is the time in seconds after which the
    user ended the run with Ctrl-C; None when it ended otherwise. `stopped` is None for a run that ended by itself,
    `files` as in `Outcome`. `called` is None unless every call was to be seen. `sysctls` are the parameters of its own
    namespaces that it opened to write, with their last values, `system` the paths below /sys, as observed, that it
    could write to only as the run was as under `--privileged`. `denial` is None for a run that was not denied anything
    on purpose.
    """

    observations: tuple[Observation, ...]
    devices: tuple[DeviceUse, ...]
    raw_calls: tuple[RawCall, ...]
    losses: Mapping[str, int]
    exit_code: int
    seconds: float
    processes: int = 0
    notes: tuple[str, ...] = ()
    interrupted: float | None = None
    stopped: Stopped | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    called: Called | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    denial: Denial | None = None
    system: Mapping[str, SystemWrite] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------------------------------
# What is made of it


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
