"""Which calls SELinux's permissions stand for, where neither a capability nor a path tells it. Data.

security/selinux/hooks.c: selinux_mount, selinux_move_mount, selinux_umount, selinux_ptrace_access_check.
"""

from __future__ import annotations

_MOUNTING = frozenset({"mount", "fsmount", "move_mount", "fsconfig"})

PERMITTED_CALLS: dict[str, frozenset[str]] = {
    "mount": _MOUNTING,
    "mounton": _MOUNTING | {"pivot_root"},
    "remount": _MOUNTING,
    "unmount": frozenset({"umount2"}),
    "ptrace": frozenset({"ptrace", "process_vm_readv", "process_vm_writev"}),
    "module_load": frozenset({"init_module", "finit_module"}),
    "prog_load": frozenset({"bpf"}),
    "map_create": frozenset({"bpf"}),
}

RELABELLED: frozenset[str] = frozenset({"z", "Z"})
"""Options of `-v` with which the engine gives a host's files the container's label."""
