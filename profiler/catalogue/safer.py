"""What is safer than the privilege: known alternatives, shown beside the recipe with their flag and the reason.

Each row matches one piece of a requirement's evidence; every condition that a row has must hold for the same piece.
Regular expressions are searched, not anchored. `{path}`, `{port}`, `{key}` and `{value}` in a flag come from the
requirement.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from profiler.model import (
    BindMount,
    Capability,
    Device,
    DeviceClass,
    DeviceUse,
    Evidence,
    Observation,
    Privilege,
    RawCall,
    Requirement,
    Sysctl,
)


@dataclass(frozen=True)
class Advice:
    """One alternative: what to do, the flag that does it (may be empty), and why it is safer."""

    text: str
    flag: str
    reason: str


@dataclass(frozen=True)
class Alternative:
    """One row: when it applies (all given conditions), and what it advises."""

    id: str
    text: str
    flag: str
    reason: str
    capability: str | None = None  # one of the requirement's alternatives holds it
    device: str | None = None  # in the label of a device, class or volume in one of the alternatives
    calls: frozenset[str] = frozenset()
    args: str | None = None  # in the rendered arguments
    path: str | None = None
    exe: str | None = None  # of the process or one of its parents


_MOUNTING = frozenset({"mount", "umount2", "fsopen", "fsconfig", "fsmount", "move_mount", "open_tree", "pivot_root"})
_CLOCK = frozenset({"settimeofday", "clock_settime", "adjtimex", "clock_adjtime"})
_IDS = frozenset(
    {"setuid", "setgid", "setgroups", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid"}
)

ALTERNATIVES: tuple[Alternative, ...] = (
    Alternative(
        id="tmpfs",
        text="let the engine mount the tmpfs",
        flag="--tmpfs {path}",
        reason="the engine mounts it before the workload starts, which then needs no SYS_ADMIN for it",
        capability="SYS_ADMIN",
        calls=frozenset({"mount"}),
        args=r'"tmpfs"',
        path=r"^/(?!proc/)",  # /proc/self/fd/N is whatever that descriptor is
    ),
    Alternative(
        id="tmpfs-opened",
        text="let the engine mount the tmpfs",
        flag="--tmpfs PATH",
        reason="the engine mounts it before the workload starts, which then needs no SYS_ADMIN for it",
        capability="SYS_ADMIN",
        calls=frozenset({"fsopen"}),
        args=r'"tmpfs"',
    ),
    Alternative(
        id="low-port",
        text="let ordinary users bind this port",
        flag="--sysctl net.ipv4.ip_unprivileged_port_start={port}",
        reason="it holds for this container's network only and gives no capability",
        capability="NET_BIND_SERVICE",
        calls=frozenset({"bind"}),
    ),
    Alternative(
        id="ping",
        text="let ping use ICMP datagram sockets",
        flag='--sysctl net.ipv4.ping_group_range="0 2147483647"',
        reason="an ICMP datagram socket sends echo requests only; NET_RAW also spoofs and sniffs (a ping with the file"
        " capability cap_net_raw must be replaced by one without it)",
        capability="NET_RAW",
        exe=r"(^|/)ping[46]?$",
    ),
    Alternative(
        id="own-groups",
        text="let the engine make the container's own control groups writable",
        flag="--security-opt writable-cgroups=true",
        reason="engines from Docker 28 on have it, and leave the host's groups out of reach",
        device=r"^volume:/sys/fs/cgroup",
    ),
    Alternative(
        id="host-setting",
        text="set this on the host before the container starts",
        flag="",
        reason="it holds for the whole host in any case, and the container then needs no writable part of /sys",
        device=r"^volume:/sys/(?!fs/cgroup)",
    ),
    Alternative(
        id="init",
        text="let the engine's own init reap and forward signals",
        flag="--init",
        reason="an init outside the image needs no capability for it",
        capability="KILL",
        exe=r"(^|/)(tini|dumb-init|my_init|s6-svscan|catatonit)$",
    ),
    Alternative(
        id="clock",
        text="leave the clock to the host's time service",
        flag="",
        reason="the clock is not namespaced: the container sets it for the whole host",
        capability="SYS_TIME",
        calls=_CLOCK,
    ),
    Alternative(
        id="firewall",
        text="set the packet filter from the host, or in a network namespace of its own",
        flag="",
        reason="NET_ADMIN also reroutes traffic and reaches the kernel code of netfilter, rich in bugs",
        capability="NET_ADMIN",
        exe=r"(^|/)(ip6?tables[^/]*|nft|xtables-[^/]*|ipset|ebtables)$",
    ),
    Alternative(
        id="network",
        text="let the engine configure the interface",
        flag="--network NETWORK --ip ADDRESS",
        reason="addresses, routes and interfaces can be made before the workload starts, with its own network",
        capability="NET_ADMIN",
        exe=r"(^|/)(ip|ifconfig|route|brctl)$",
    ),
    Alternative(
        id="modules",
        text="load the module on the host beforehand",
        flag="",
        reason="a module runs in the host's kernel; nothing in a container should choose it",
        capability="SYS_MODULE",
        calls=frozenset({"init_module", "finit_module", "delete_module"}),
    ),
    Alternative(
        id="hostname",
        text="let the engine set the name",
        flag="--hostname NAME",
        reason="the engine sets it in the new UTS namespace before the workload starts",
        capability="SYS_ADMIN",
        calls=frozenset({"sethostname"}),
    ),
    Alternative(
        id="sysctl",
        text="let the engine set the parameter, and leave it out of the workload",
        flag="--sysctl {key}={value}",
        reason="the engine writes namespaced parameters before the workload starts; /proc/sys can stay read-only",
        path=r"^/proc/sys/(net|kernel/(shm|msg|sem)|fs/mqueue)",
    ),
    Alternative(
        id="ulimit",
        text="let the engine set the limit",
        flag="--ulimit NAME=SOFT:HARD",
        reason="a limit raised before the start needs no SYS_RESOURCE afterwards",
        capability="SYS_RESOURCE",
        calls=frozenset({"setrlimit", "prlimit64"}),
    ),
    Alternative(
        id="memlock",
        text="raise the limit of locked memory",
        flag="--ulimit memlock=-1",
        reason="a limit for this container instead of the right to ignore every such limit",
        capability="IPC_LOCK",
        calls=frozenset({"mlock", "mlock2", "mlockall", "mmap"}),
    ),
    Alternative(
        id="real-time",
        text="raise the limits of priority",
        flag="--ulimit rtprio=99 --ulimit nice=40",
        reason="a limit for this container instead of power over the placement of any process",
        capability="SYS_NICE",
        calls=frozenset({"setpriority", "sched_setscheduler", "sched_setparam", "sched_setattr"}),
    ),
    Alternative(
        id="user",
        text="start as the user that it becomes",
        flag="--user UID:GID",
        reason="a process that starts as its user needs neither SETUID nor SETGID to get there",
        capability="SETUID",
        calls=_IDS,
        exe=r"(^|/)(gosu|su-exec|setpriv|chpst|su|runuser)$",
    ),
    Alternative(
        id="node",
        text="let the engine make the node",
        flag="--device {path}",
        reason="the engine makes the node and opens its cgroup for this device only",
        capability="MKNOD",
        calls=frozenset({"mknod", "mknodat"}),
        path=r"^/dev/",  # elsewhere, in the root of another container or an image, is no device of the host
    ),
    Alternative(
        id="kernel-log",
        text="read the kernel log on the host",
        flag="",
        reason="the log tells of everything on the host and of kernel addresses",
        capability="SYSLOG",
        calls=frozenset({"syslog"}),
    ),
    Alternative(
        id="loop",
        text="build the image without mounting it: mkfs.ext4 -d DIRECTORY, mksquashfs, genext2fs, or mount it by FUSE",
        flag="--device /dev/fuse",
        reason="loop devices are the host's, and mounting feeds a crafted image to the kernel's file system driver",
        device=r"^(/dev/loop|b 7:)",
    ),
    Alternative(
        id="daemonless-builder",
        text="build as an ordinary user in a user namespace (buildah --isolation chroot, rootless podman or BuildKit)",
        flag="--user UID --device /dev/fuse",
        reason="a user namespace gives root over the build only; it needs no capability of the host's",
        capability="SYS_ADMIN",
        exe=r"(^|/)(buildah|podman|img|kaniko|executor|umoci)$",
    ),
    Alternative(
        id="buildkit-step",
        text="give the privilege to the one build step that needs it",
        flag="RUN --security=insecure",
        reason="BuildKit scopes it to one RUN, where docker build grants the daemon's whole set or nothing",
        capability="SYS_ADMIN",
        exe=r"(^|/)(buildkitd|buildctl|buildkit-runc|docker-buildx)$",
    ),
    Alternative(
        id="inner-engine",
        text="use the host's engine, or a rootless one, instead of an engine inside",
        flag="-v /var/run/docker.sock:/var/run/docker.sock",
        reason="an inner engine needs almost all of --privileged; but whoever holds that socket is root on the host: a"
        " rootless engine's socket is the one to share",
        capability="SYS_ADMIN",
        exe=r"(^|/)(dockerd|containerd)$",
    ),
    Alternative(
        id="user-namespace",
        text="mount inside a user namespace: unshare --user --map-root-user --mount",
        flag="",
        reason="SYS_ADMIN of a user namespace mounts tmpfs, overlay, proc, bind and FUSE without power over the host",
        capability="SYS_ADMIN",
        calls=_MOUNTING,
        args=r'"(overlay|proc|fuse[^"]*|sysfs|devpts|mqueue)"|MS_BIND|MS_REC|MS_PRIVATE|MS_REMOUNT',
    ),
)

# The port in an address as the tracer renders it (`0.0.0.0:80`, `[::]:443`).
_PORT = re.compile(r"(?:\]|\.\d{1,3}):(\d{1,5})\b")
_EXAMPLES = 3  # flags shown of one row: a build may mount a hundred file systems
_SYSCTLS = "/proc/sys/"


def _holds(requirement: Requirement, row: Alternative) -> bool:
    """Whether the privileges in question are the row's (an alternative set names its capability and its device)."""
    members: list[Privilege] = [member for alternative in requirement.alternatives for member in alternative]
    if row.capability is not None and Capability(row.capability) not in members:
        return False
    return row.device is None or any(
        re.search(row.device, member.label)
        for member in members
        if isinstance(member, Device | DeviceClass | BindMount)
    )


def _matches(row: Alternative, piece: Evidence) -> bool:
    """Whether one piece of evidence meets every condition that the row has on evidence."""
    call = piece.call if isinstance(piece, Observation) else piece.name if isinstance(piece, RawCall) else None
    args = ", ".join(piece.args) if isinstance(piece, Observation) else ""
    path = piece.path if isinstance(piece, Observation | DeviceUse) else None
    programs = (piece.process.exe, *piece.process.chain)
    return (
        (not row.calls or call in row.calls)
        and (row.args is None or re.search(row.args, args) is not None)
        and (row.path is None or (path is not None and re.search(row.path, path) is not None))
        and (row.exe is None or any(re.search(row.exe, program) for program in programs))
    )


def _port(piece: Evidence) -> int | None:
    found = _PORT.search(", ".join(piece.args)) if isinstance(piece, Observation) else None
    return int(found[1]) if found else None


def _flag(row: Alternative, piece: Evidence, values: Mapping[str, str]) -> str:
    """The row's flag with what is known filled in (`values` of parameters by key); where nothing is, a word in
    capitals."""
    path = (piece.path if isinstance(piece, Observation | DeviceUse) else None) or "PATH"
    key = path.removeprefix(_SYSCTLS).replace("/", ".")
    port = _port(piece)
    filled = {
        "{path}": path,
        "{port}": "PORT" if port is None else str(port),
        "{key}": key,
        "{value}": shlex.quote(values[key]) if key in values else "VALUE",
    }
    flag = row.flag
    for name, value in filled.items():
        flag = flag.replace(name, value)
    return flag


def advice(requirements: Iterable[Requirement]) -> tuple[Advice, ...]:
    """The alternatives for these requirements, in the table's order: of each row the first few different flags.

    A flag that opens all ports from one on is given for the lowest port only.
    """
    wanted = tuple(requirements)
    values = {m.key: m.value for row in wanted for a in row.alternatives for m in a if isinstance(m, Sysctl)}
    found: list[Advice] = []
    for row in ALTERNATIVES:
        pieces = [
            piece
            for requirement in wanted
            if _holds(requirement, row)
            for piece in requirement.evidence
            if _matches(row, piece)
        ]
        if "{port}" in row.flag:
            pieces = sorted(pieces, key=lambda piece: (_port(piece) is None, _port(piece) or 0))[:1]
        flags = list(dict.fromkeys(_flag(row, piece, values) for piece in pieces))
        found += [Advice(row.text, flag, row.reason) for flag in flags[:_EXAMPLES]]
    return tuple(found)
