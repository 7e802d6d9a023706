"""Capabilities by name and number, and the sets of a process. What a capability is for is no matter of this room.

Names are written without `CAP_`. A capability that this kernel knows and this list does not is named by its number
(`"41"`), so that nothing is lost. Sources: linux/capability.h, capabilities(7), proc_pid_status(5), capset(2).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from profiler.kernel import namespaces
from profiler.kernel.namespaces import libc, oserror, prctl

# linux/capability.h: the position is the number
CAPABILITIES: tuple[str, ...] = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
NUMBER: dict[str, int] = {name: number for number, name in enumerate(CAPABILITIES)}

LINUX_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h: two 32-bit words a set
CAPSET_DATA = 8  # bytes from the header to the data in what `capset_arguments` gives


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    """struct __user_cap_data_struct."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


libc.capset.argtypes = (ctypes.POINTER(_Header), ctypes.POINTER(_Data))


@dataclass(frozen=True)
class CapabilitySets:
    """The five sets of one thread, by name."""

    inheritable: frozenset[str]
    permitted: frozenset[str]
    effective: frozenset[str]
    bounding: frozenset[str]
    ambient: frozenset[str]


def name_of(number: int) -> str:
    """The name of the capability `number`; the number itself, in decimal, where it has no name here."""
    return CAPABILITIES[number] if number < len(CAPABILITIES) else str(number)


def names(mask: int) -> frozenset[str]:
    """The capabilities whose bits are set in `mask`, as /proc and the kernel write a set."""
    return frozenset(name_of(number) for number in range(mask.bit_length()) if mask >> number & 1)


def mask(names: Iterable[str]) -> int:
    """The bits of `names`: the other way round. KeyError for a name that is neither known nor a number."""
    bits = 0
    for name in names:
        bits |= 1 << (int(name) if name.isdecimal() else NUMBER[name])
    return bits


def last_cap() -> int:
    """The highest capability number of this kernel (/proc/sys/kernel/cap_last_cap)."""
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))


def sets_of(pid: int | str = "self") -> CapabilitySets:
    """The sets of the main thread of `pid` (or of `"self"`, `"thread-self"`), from /proc/PID/status.

    Raises FileNotFoundError or ProcessLookupError when there is no such process.
    """
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    fields = dict(line.split(":", 1) for line in text.splitlines() if line.startswith("Cap"))
    return CapabilitySets(
        inheritable=names(int(fields["CapInh"], 16)),
        permitted=names(int(fields["CapPrm"], 16)),
        effective=names(int(fields["CapEff"], 16)),
        bounding=names(int(fields["CapBnd"], 16)),
        ambient=names(int(fields.get("CapAmb", "0"), 16)),
    )


@dataclass(frozen=True)
class Held:
    """The ids that decide on capabilities, and three sets as bits, of one thread. `process` is its thread group."""

    process: int
    euid: int
    fsuid: int
    effective: int
    permitted: int
    inheritable: int


def held_by(task: int) -> Held:
    """What the thread `task` holds now, from /proc/TASK/status. FileNotFoundError or ProcessLookupError without it."""
    with Path(f"/proc/{task}/status").open("rb", buffering=0) as file:
        lines = file.read(8192).splitlines()
    fields = {key: value.split() for line in lines for key, _, value in [line.partition(b":")]}
    bits = (int(fields[name][0], 16) for name in (b"CapEff", b"CapPrm", b"CapInh"))
    return Held(int(fields[b"Tgid"][0]), int(fields[b"Uid"][1]), int(fields[b"Uid"][3]), *bits)


def capset_arguments(effective: int, permitted: int, inheritable: int) -> bytes:
    """Sets as bits, for capset(2): the header for the calling thread, then both struct __user_cap_data_struct."""
    words = (word >> shift & 0xFFFFFFFF for shift in (0, 32) for word in (effective, permitted, inheritable))
    return struct.pack("<Ii6I", LINUX_CAPABILITY_VERSION_3, 0, *words)


def drop_bounding(keep: frozenset[str]) -> None:
    """Drop every capability outside `keep` from the bounding set of the calling thread, for good.

    Raises OSError EPERM without SETPCAP in the effective set. What is in `keep` and not in the set stays absent.
    """
    for number in range(last_cap() + 1):
        if name_of(number) not in keep and prctl(namespaces.PR_CAPBSET_READ, number):
            prctl(namespaces.PR_CAPBSET_DROP, number)


def set_own(effective: frozenset[str], permitted: frozenset[str], inheritable: frozenset[str]) -> None:
    """Set the three sets of the calling thread with capset(2) and clear its ambient set. no_new_privs stays as it is.

    Raises OSError EPERM when a set would grow in a way that the kernel forbids (cap_capset in security/commoncap.c).
    """
    header = _Header(LINUX_CAPABILITY_VERSION_3, 0)
    words = (mask(effective), mask(permitted), mask(inheritable))
    data = (_Data * 2)(*(_Data(*(word >> shift & 0xFFFFFFFF for word in words)) for shift in (0, 32)))
    prctl(namespaces.PR_CAP_AMBIENT, namespaces.PR_CAP_AMBIENT_CLEAR_ALL)
    if libc.capset(ctypes.byref(header), data) < 0:
        raise oserror("capset")
