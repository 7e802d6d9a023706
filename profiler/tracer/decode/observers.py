"""Renders what observers of the kernel ask for: events of perf_event_open(2), programs and maps of bpf(2).

Constants and structures of linux/perf_event.h and linux/bpf.h; what is missing is printed as a number.
"""

from __future__ import annotations

import os
from typing import Final

from profiler.tracer.decode.constants import BPF_COMMANDS
from profiler.tracer.decode.values import Args, Tracee, pointer, quoted

_PERF_ATTRIBUTES = 48  # bytes up to the bits after read_format
_PERF_TYPES: Final = (
    "PERF_TYPE_HARDWARE", "PERF_TYPE_SOFTWARE", "PERF_TYPE_TRACEPOINT", "PERF_TYPE_HW_CACHE", "PERF_TYPE_RAW",
    "PERF_TYPE_BREAKPOINT",
)  # fmt: skip
_PERF_EVENTS: Final = {
    0: ("CPU_CYCLES", "INSTRUCTIONS", "CACHE_REFERENCES", "CACHE_MISSES", "BRANCH_INSTRUCTIONS", "BRANCH_MISSES",
        "BUS_CYCLES", "STALLED_CYCLES_FRONTEND", "STALLED_CYCLES_BACKEND", "REF_CPU_CYCLES"),
    1: ("CPU_CLOCK", "TASK_CLOCK", "PAGE_FAULTS", "CONTEXT_SWITCHES", "CPU_MIGRATIONS", "PAGE_FAULTS_MIN",
        "PAGE_FAULTS_MAJ", "ALIGNMENT_FAULTS", "EMULATION_FAULTS", "DUMMY", "BPF_OUTPUT", "CGROUP_SWITCHES"),
}  # fmt: skip
_PERF_PREFIXES: Final = {0: "PERF_COUNT_HW_", 1: "PERF_COUNT_SW_"}
_EXCLUDE_KERNEL = 1 << 5  # without it an event is of the kernel too, which is what takes a privilege

_BPF_ATTRIBUTES = 64  # bytes up to prog_name's end
_BPF_NAME = 16  # BPF_OBJ_NAME_LEN
_BPF_PROGRAMS: Final = (
    "UNSPEC", "SOCKET_FILTER", "KPROBE", "SCHED_CLS", "SCHED_ACT", "TRACEPOINT", "XDP", "PERF_EVENT", "CGROUP_SKB",
    "CGROUP_SOCK", "LWT_IN", "LWT_OUT", "LWT_XMIT", "SOCK_OPS", "SK_SKB", "CGROUP_DEVICE", "SK_MSG", "RAW_TRACEPOINT",
    "CGROUP_SOCK_ADDR", "LWT_SEG6LOCAL", "LIRC_MODE2", "SK_REUSEPORT", "FLOW_DISSECTOR", "CGROUP_SYSCTL",
    "RAW_TRACEPOINT_WRITABLE", "CGROUP_SOCKOPT", "TRACING", "STRUCT_OPS", "EXT", "LSM", "SK_LOOKUP", "SYSCALL",
)  # fmt: skip
_BPF_MAPS: Final = (
    "UNSPEC", "HASH", "ARRAY", "PROG_ARRAY", "PERF_EVENT_ARRAY", "PERCPU_HASH", "PERCPU_ARRAY", "STACK_TRACE",
    "CGROUP_ARRAY", "LRU_HASH", "LRU_PERCPU_HASH", "LPM_TRIE", "ARRAY_OF_MAPS", "HASH_OF_MAPS", "DEVMAP", "SOCKMAP",
    "CPUMAP", "XSKMAP", "SOCKHASH", "CGROUP_STORAGE", "REUSEPORT_SOCKARRAY", "PERCPU_CGROUP_STORAGE", "QUEUE", "STACK",
    "SK_STORAGE", "DEVMAP_HASH", "STRUCT_OPS", "RINGBUF", "INODE_STORAGE", "TASK_STORAGE", "BLOOM_FILTER",
    "USER_RINGBUF",
)  # fmt: skip


def perf_event(value: int, tracee: Tracee, args: Args) -> str:
    """`struct perf_event_attr`: what is counted, and whether in programs only."""
    content = tracee.bytes(value, _PERF_ATTRIBUTES)
    if len(content) < _PERF_ATTRIBUTES:
        return pointer(value, tracee, args)
    kind, config, bits = (int.from_bytes(content[at : at + size], "little") for at, size in ((0, 4), (8, 8), (40, 8)))
    events = _PERF_EVENTS.get(kind, ())
    counted = _PERF_PREFIXES[kind] + events[config] if config < len(events) else f"config={config:#x}"
    shown = [_named(_PERF_TYPES, "type=", kind), counted]
    if bits & _EXCLUDE_KERNEL:
        shown.append("exclude_kernel")
    return "{" + ", ".join(shown) + "}"


def bpf_attributes(value: int, tracee: Tracee, args: Args) -> str:
    """`union bpf_attr` of the command in argument 0: a program's or a map's type, and its name where it has one."""
    content = tracee.bytes(value, min(args[2] & 0xFFFFFFFF, _BPF_ATTRIBUTES))
    command = BPF_COMMANDS.get(args[0] & 0xFFFFFFFF)
    if len(content) < 4 or command not in ("BPF_PROG_LOAD", "BPF_MAP_CREATE"):
        return pointer(value, tracee, args)
    loads = command == "BPF_PROG_LOAD"
    types, prefix, at = (
        (_BPF_PROGRAMS, "BPF_PROG_TYPE_", 48) if loads else (_BPF_MAPS, "BPF_MAP_TYPE_", 28)
    )  # prog_name, map_name
    kind = int.from_bytes(content[:4], "little")
    shown = [prefix + types[kind] if kind < len(types) else f"type={kind}"]
    name = content[at : at + _BPF_NAME].split(b"\0", 1)[0]
    if name:
        shown.append(quoted(os.fsdecode(name)))
    return "{" + ", ".join(shown) + "}"


def _named(names: tuple[str, ...], prefix: str, value: int) -> str:
    return names[value] if value < len(names) else f"{prefix}{value}"
