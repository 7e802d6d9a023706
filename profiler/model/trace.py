"""What one traced run showed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
