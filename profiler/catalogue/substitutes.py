"""Which capabilities the kernel accepts in each other's stead, by the check's site. Data.

The kernel asks one of them first; when both are granted only that one is seen. `instead` are the others that the same
check accepts, each alone. From the kernel's source, and tried one by one on Linux 6.18.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Substitute:
    """At one of `functions` (empty: anywhere) the kernel takes any of `instead` where it asked for `asked`."""

    asked: str
    functions: frozenset[str]
    instead: tuple[str, ...]
    source: str


def _row(asked: str, functions: str, instead: str, source: str) -> Substitute:
    return Substitute(asked, frozenset(functions.split()), tuple(instead.split()), source)


SUBSTITUTES: tuple[Substitute, ...] = (
    _row("DAC_READ_SEARCH", "generic_permission", "DAC_OVERRIDE", "fs/namei.c, generic_permission"),
    _row("FOWNER", "may_setattr", "DAC_OVERRIDE", "fs/attr.c, may_setattr: times to now need write permission only"),
    _row(
        "NET_RAW",
        "do_ip_setsockopt do_ipv6_setsockopt sk_setsockopt __sock_cmsg_send",
        "NET_ADMIN",
        "net/core/sock.c, sockopt_ns_capable after CAP_NET_RAW",
    ),
    _row("SYS_ADMIN", "ioprio_check_cap", "SYS_NICE", "block/ioprio.c, ioprio_check_cap"),
    _row("SYS_RESOURCE", "copy_process alloc_pipe_info", "SYS_ADMIN", "kernel/fork.c, copy_process; fs/pipe.c"),
    _row("PERFMON", "", "SYS_ADMIN", "include/linux/capability.h, perfmon_capable"),
    _row("BPF", "", "SYS_ADMIN", "include/linux/capability.h, bpf_capable"),
    _row("CHECKPOINT_RESTORE", "", "SYS_ADMIN", "include/linux/capability.h, checkpoint_restore_ns_capable"),
)
