"""What kernel stacks mean, as they were recorded."""

from profiler.witness.stacks import UNKNOWN, classify


def frames(text: str) -> list[str]:
    return text.split()


# Linux 6.12 (Debian 13), a kprobe on cap_capable: the way to it leads through ftrace's trampoline, whose address was
# taken for a function of the module 9p that had long been freed.
KPROBE = frames(
    """
    kprobe_trace_func kprobe_dispatcher aggr_pre_handler kprobe_ftrace_handler init_v9fs cap_capable security_capable
    capable_wrt_inode_uidgid setattr_prepare shmem_setattr notify_change chown_common do_fchownat __x64_sys_chown
    do_syscall_64 entry_SYSCALL_64_after_hwframe
    """
)


def test_a_kprobes_way_to_the_check_is_no_site():
    info = classify(KPROBE)
    assert (info.site, info.call, info.own) == ("setattr_prepare", "chown", True)
    assert info.stack == tuple(KPROBE[8:14])


def test_accounting_is_told_through_a_kprobe_too():
    inside = ["cap_vm_enough_memory", "security_vm_enough_memory_mm", "mmap_region", "do_mmap", "__x64_sys_mmap"]
    info = classify([*KPROBE[:6], *inside, *KPROBE[14:]])
    assert (info.site, info.accounting, info.own) == ("security_vm_enough_memory_mm", True, True)


def test_a_stack_without_the_checks_own_function_begins_above_the_helpers():
    assert classify(["ns_capable", "may_mount", "do_mount", "__x64_sys_mount", "do_syscall_64"]).site == "do_mount"


def test_a_stack_of_helpers_alone_has_no_site():
    assert classify(KPROBE[:8]).site == UNKNOWN.site
