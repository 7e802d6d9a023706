"""Reads a check's kernel stack: where the check was made, in which call, and whose credentials it can have used.

Sites are names of kernel functions without the compiler's suffixes. What is here was seen on Linux 6.18 and read in
the sources of 5.10 to 6.18; another kernel may have inlined a function into its caller, then the caller is the site.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from profiler.witness.symbols import plain


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Functions between a decision's place and cap_capable: kernel/capability.c, security/commoncap.c, security/security.c,
# security/selinux/hooks.c, kernel/ptrace.c, net/core/sock.c, net/netlink/af_netlink.c, fs/inode.c, fs/attr.c,
# fs/namespace.c, kernel/bpf/token.c, and the trace machinery itself.
HELPERS = _names(
    """
    trace_event_raw_event_cap_capable __traceiter_cap_capable __bpf_trace_cap_capable
    trace_event_buffer_commit event_triggers_post_call stacktrace_trigger
    kprobe_ftrace_handler kprobe_dispatcher kprobe_trace_func __kprobe_trace_func aggr_pre_handler opt_pre_handler
    optimized_callback kprobe_int3_handler do_int3 exc_int3 asm_exc_int3
    ftrace_regs_caller ftrace_caller ftrace_ops_assist_func ftrace_ops_list_func arch_ftrace_ops_list_func
    ftrace_regs_call ftrace_call arch_rethook_trampoline __kretprobe_trampoline kretprobe_trampoline
    cap_capable cap_capable_helper cap_vm_enough_memory security_capable security_bpf_token_capable
    selinux_capable cred_has_capability apparmor_capable smack_capable
    ns_capable_common ns_capable ns_capable_noaudit ns_capable_setid capable capable_wrt_inode_uidgid
    has_capability has_capability_noaudit has_ns_capability has_ns_capability_noaudit
    ptracer_capable ptrace_has_cap file_ns_capable
    sk_ns_capable sk_capable sk_net_capable sockopt_ns_capable sockopt_capable
    netlink_ns_capable __netlink_ns_capable netlink_capable netlink_net_capable
    inode_owner_or_capable privileged_wrt_inode_uidgid in_group_or_capable may_mount mount_capable
    cap_safe_nice cap_task_setnice cap_task_setioprio cap_task_setscheduler
    security_task_setnice security_task_setioprio security_task_setscheduler security_task_movememory
    perfmon_capable bpf_capable bpf_ns_capable bpf_token_capable bpf_net_capable checkpoint_restore_ns_capable
    """
)
# Memory accounting: cap_vm_enough_memory asks with current's credentials against &init_user_ns, and never refuses.
ACCOUNTING = frozenset({"security_vm_enough_memory_mm", "__vm_enough_memory"})
# Functions of arch/x86/entry and kernel/entry that stand below every call.
_BELOW = _names(
    """
    x64_sys_call ia32_sys_call do_syscall_64 do_syscall_x64 entry_SYSCALL_64_after_hwframe do_int80_emulation
    do_int80_syscall_32 __do_fast_syscall_32 do_fast_syscall_32 do_SYSENTER_32 entry_SYSENTER_compat_after_hwframe
    asm_int80_emulation entry_INT80_compat int80_emulation invoke_syscall el0_svc el0_svc_common do_el0_svc
    el0t_64_sync_handler el0t_64_sync ret_from_fork ret_from_fork_asm
    """
)
_ENTRY = re.compile(r"^__(?:x64|ia32|arm64|do|se)_(?:compat_)?sys_(\w+)$")
# A system call whose whole body is another function is left by a jump: the entry's own frame is gone.
_BODY = re.compile(r"^(?:__sys|ksys|__se_sys)_(\w+)$")
# SYSCALL_DEFINEn's name where the table's name is another (arch/x86/entry/syscalls/syscall_64.tbl).
TABLE_NAMES = {
    "newstat": "stat",
    "newfstat": "fstat",
    "newlstat": "lstat",
    "newuname": "uname",
    "sendfile64": "sendfile",
    "umount": "umount2",
    "ia32_clone": "clone",
}
KERNEL_NAMES = {table: kernel for kernel, table in TABLE_NAMES.items() if table != "clone"}
# Functions of overlayfs that ask with the task's own credentials before they take their mounter's (fs/overlayfs:
# ovl_permission, ovl_setattr, ovl_set_or_remove_acl), each with the site that it asks through.
_OVERLAY_OWN = frozenset(
    {
        ("generic_permission", "ovl_permission"),
        ("setattr_prepare", "ovl_setattr"),
        ("ovl_set_acl", ""),
        ("ovl_set_or_remove_acl", ""),
    }
)
# A file's permissions are asked for the way to it, for opening it, or to see whether a program may be dumped.
_TELLING = frozenset({"link_path_walk", "would_dump"})
# Mounting an overlay works under a copy of the mounting task's own credentials (ovl_fill_super: creator_cred).
_OVERLAY_MOUNT = frozenset({"ovl_fill_super", "ovl_get_tree"})


@dataclass(frozen=True, eq=False, slots=True)
class StackInfo:
    """What one kernel stack means. One object for each distinct stack: compare by identity.

    `site` is the first function above the helpers; `stack` the functions from there to the call's entry, nearest
    first, as the kernel spells them; `call` the system call's table name, None outside of one. `accounting` says that
    the check decides nothing. `own`: the check certainly used current's own credentials. `overlay`, `opener`: it
    probably used those of an overlay's mounter, or of the task that opened a file or socket (`file_ns_capable`).
    `via` is the function of `_TELLING` that it came through, where checks of one site mean different things.
    """

    site: str
    stack: tuple[str, ...]
    call: str | None
    accounting: bool = False
    own: bool = False
    overlay: bool = False
    opener: bool = False
    via: str = ""


UNKNOWN = StackInfo("?", (), None)


def table_name(kernel_name: str) -> str:
    """The system call table's name for a SYSCALL_DEFINE's name."""
    return TABLE_NAMES.get(kernel_name, kernel_name)


def kernel_name(table_name_: str) -> str:
    """The SYSCALL_DEFINE's name (also the trace event's, `sys_exit_NAME`) for a table's name."""
    return KERNEL_NAMES.get(table_name_, table_name_)


def call_of(names: Sequence[str]) -> str | None:
    """The system call in whose frame a stack (nearest first) was, None for a kernel thread or an exit path."""
    for name in reversed(names):
        found = _ENTRY.match(name)
        if found:
            return table_name(found[1])
    for name in reversed(names):
        if name not in _BELOW:
            found = _BODY.match(name)
            return table_name(found[1]) if found else None
    return None


def _overlay_lends(names: Sequence[str]) -> bool:
    """Whether the nearest function of overlayfs asks for its mounter. `names` begin with the site."""
    nearest = next((at for at, name in enumerate(names) if name.startswith("ovl_")), None)
    if nearest is None or not _OVERLAY_MOUNT.isdisjoint(names):
        return False
    if nearest == 0:
        return (names[0], "") not in _OVERLAY_OWN
    return nearest > 1 or (names[0], names[1]) not in _OVERLAY_OWN


def classify(raw: Sequence[str]) -> StackInfo:
    """Classify the functions of one stack, nearest first, as /proc/kallsyms names them."""
    names = [plain(name) for name in raw]
    # What is above the check's own function is the trace machinery's. A kprobe's way there leads through a trampoline
    # made at run time (arch/x86/kernel/ftrace.c, create_trampoline), for which any function of a module may be taken.
    asked = next((at for at, name in enumerate(names) if name == "cap_capable"), 0)
    first = next((at for at in range(asked, len(names)) if names[at] not in HELPERS), None)
    if first is None or names[first] in _BELOW:
        return StackInfo(UNKNOWN.site, tuple(raw), None)
    last = next((at for at in range(first, len(names)) if names[at] in _BELOW), len(names))
    above = names[first:last]
    helpers = names[:first]
    overlay = _overlay_lends(above)
    opener = "file_ns_capable" in helpers
    # has_ns_capability asks about another task; access(2) works under a copy (access_override_creds)
    other = any(name.startswith(("has_capability", "has_ns_capability")) for name in helpers) or "do_faccessat" in above
    mounting = not _OVERLAY_MOUNT.isdisjoint(above)
    return StackInfo(
        site=above[0],
        stack=tuple(raw[first:last]),
        call=call_of(names),
        accounting=above[0] in ACCOUNTING,
        own=not (overlay or opener or other or mounting),
        overlay=overlay,
        opener=opener,
        via=next((name for name in above if name in _TELLING), ""),
    )
