"""Since which release of Linux a capability is checked in each kernel function that `sites.py` names. Data.

For whoever reads evidence of another kernel, or looks for the check in its source. Nothing is decided by it, and the
running kernel is not asked for its version. What is not known for sure is left out: rows without a release are none.
`until` is the first release without the check there; a static function without it may be inlined into its caller, so
that a stack does not name it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OLD = "2.6.12"  # git's history begins there: what it had then is older


@dataclass(frozen=True)
class Span:
    """The releases in which a function makes the check. `why` is what changed then."""

    since: str
    why: str = ""
    until: str = ""

    @property
    def words(self) -> str:
        """For people: since when, and until when."""
        begun = f"since before Linux {OLD}" if self.since == OLD else f"since Linux {self.since}"
        return begun + (f", until Linux {self.until}" if self.until else "")


_UID16 = "the system calls' bodies became functions that the 16-bit ones call too"
_STUBS = "system calls take their registers from struct pt_regs, and have their body in __do_sys_*"

FUNCTIONS: Mapping[str, Span] = {
    # accounting and limits
    "cap_vm_enough_memory": Span(OLD),
    "security_vm_enough_memory_mm": Span("2.6.23", "exec accounts for an mm that is not current->mm"),
    "ext4_has_free_clusters": Span("3.2", "bigalloc: before, ext4_has_free_blocks"),
    "too_many_pipe_buffers_hard": Span("4.5", "pipe-user-pages-hard"),
    "alloc_pipe_info": Span("4.9", "a new pipe is held to pipe-max-size"),
    "pipe_is_unprivileged_user": Span("4.16", "root may exceed the pipe buffer limits"),
    "__set_oom_adj": Span("4.8", "oom_adj and oom_score_adj share one function"),
    # BPF
    "bpf_check": Span("4.4", "programs without privilege: allow_ptr_leaks"),
    "bpf_jit_blind_constants": Span("4.7", "constant blinding"),
    "bpf_int_jit_compile": Span("4.7", "constant blinding, inlined"),
    "do_jit": Span("4.7", "constant blinding, inlined"),
    "bpf_prog_kallsyms_add": Span("4.11", "programs in /proc/kallsyms"),
    "array_map_alloc": Span("4.15", "masks an index against speculation for who has no privilege"),
    # sysctl
    "net_ctl_permissions": Span("3.8", "parameters of a network namespace are its owner's"),
    "set_permissions": Span("4.9", "limits of a user namespace"),
    "ipc_permissions": Span("5.19", "parameters for checkpoints are asked for at open"),
    "pid_table_root_permissions": Span("6.14", "pid_max belongs to the PID namespace"),
    # lists
    "simple_xattr_list": Span("3.7", "the attributes of tmpfs became everybody's"),
    "ext4_xattr_trusted_list": Span("2.6.19", "ext4 is split off ext3"),
    "inet_diag_dump_icsk": Span("4.9", "sockets are selected by their marks"),
    "r_show": Span("4.6", "addresses for the privileged only"),
    "pagemap_read": Span("4.3", "frame numbers hidden; before, the file could not be opened"),
    "kallsyms_show_value": Span("4.15", "addresses no longer by %pK"),
    "proc_bus_pci_read": Span(OLD),
    "pci_read_config": Span(OLD),
    # probing and loading
    "dev_load": Span(OLD, "for SYS_MODULE; for NET_ADMIN, and netdev-* alone, since 2.6.38"),
    "tty_ldisc_get": Span("5.1", "dev.tty.ldisc_autoload"),
    "do_tcp_setsockopt": Span("5.3", "congestion control: before, tcp_set_congestion_control asked itself"),
    "sk_setsockopt": Span("6.1", "before, sock_setsockopt"),
    "__vsock_create": Span("3.9", "vsock"),
    "vt_ioctl": Span(OLD),
    "io_uring_create": Span("5.1", "io_uring"),
    "io_uring_setup": Span("5.1", "io_uring; inlined"),
    "madvise_pageout": Span("5.4", "MADV_PAGEOUT"),
    "can_do_mincore": Span("5.2", "mincore tells of one's own pages only"),
    # files
    "setattr_should_drop_sgid": Span("6.2", "set-group-ID bits go by one rule; before, should_remove_suid"),
    "setattr_should_drop_suidgid": Span("6.2", "set-group-ID bits go by one rule; before, should_remove_suid"),
    "setattr_prepare": Span("4.9", "before, inode_change_ok"),
    "setattr_copy": Span("2.6.36", "before, generic_setattr and inode_setattr"),
    "posix_acl_update_mode": Span("4.9", "a set-group-ID bit is cleared when an ACL changes the mode"),
    "mode_strip_sgid": Span("6.0", "before, inode_init_owner"),
    "inode_init_owner": Span("4.18", "a file made in a set-group-ID directory of a foreign group", until="6.0"),
    "generic_permission": Span(OLD),
    "may_open": Span(OLD, "O_NOATIME"),
    "inode_owner_or_capable": Span("2.6.39", "before, is_owner_or_cap"),
    "blkdev_common_ioctl": Span("5.6", "native and 32-bit ioctls share one function"),
    # credentials and exec
    "cap_capset": Span("2.6.29", "credentials are copied and committed; before, cap_capset_check"),
    "bprm_caps_from_vfs_caps": Span("2.6.29", "before, cap_from_disk: files have capabilities since 2.6.24"),
    "handle_privileged_root": Span("4.15", "split off cap_bprm_set_creds"),
    "cap_bprm_creds_from_file": Span("5.8", "before, cap_bprm_set_creds"),
    "begin_new_exec": Span("5.8", "before, flush_old_exec"),
    "bprm_execve": Span("5.9", "split off __do_execve_file"),
    "__sys_setfsuid": Span("4.17", _UID16),
    "__sys_setfsgid": Span("4.17", _UID16),
    "__sys_setuid": Span("4.17", _UID16),
    "__sys_setreuid": Span("4.17", _UID16),
    "__sys_setresuid": Span("4.17", _UID16),
    "__sys_setgid": Span("4.17", _UID16),
    "__sys_setregid": Span("4.17", _UID16),
    "__sys_setresgid": Span("4.17", _UID16),
    "may_setgroups": Span("3.19", "user namespaces may forbid setgroups"),
    "__do_sys_setgroups": Span("4.17", f"{_STUBS}; may_setgroups, inlined"),
    # other processes
    "__ptrace_may_access": Span("2.6.27", "reading /proc and attaching are told apart"),
    "cap_ptrace_access_check": Span("2.6.32", "before, cap_ptrace_may_access"),
    "check_kill_permission": Span(OLD),
    "kill_ok_by_cred": Span("2.6.39", "a user namespace's owner may signal in it"),
    "audit_netlink_ok": Span(OLD),
    "audit_receive_msg": Span(OLD, "audit_netlink_ok, inlined"),
    "proc_loginuid_write": Span(OLD, until="3.3"),
    "audit_set_loginuid": Span("3.3", "only who has none sets a login uid, or AUDIT_CONTROL"),
    # priorities and locked memory
    "set_task_ioprio": Span("2.6.13", "I/O priorities"),
    "ioprio_check_cap": Span("4.18", "aio has priorities too"),
    "can_nice": Span(OLD),
    "set_one_prio": Span(OLD),
    "__sched_setscheduler": Span("2.6.27", "the kernel's own threads are set without a check"),
    "can_do_mlock": Span(OLD),
    "do_mlock": Span("4.4", "mlock2"),
    "do_prlimit": Span("2.6.36", "prlimit64; before, setrlimit itself"),
    "__do_sys_fanotify_init": Span("4.17", _STUBS),
    "__do_sys_perf_event_open": Span("5.8", "PERFMON; SYS_ADMIN before"),
    # mounts, namespaces and roots
    "path_mount": Span("5.9", "split off do_mount"),
    "unshare_nsproxy_namespaces": Span("2.6.22", "clone and unshare make namespaces in one way"),
    "copy_namespaces": Span("2.6.22", "clone and unshare make namespaces in one way"),
    "ksys_chroot": Span("4.17", "the body of chroot, for the kernel's own use too", until="5.9"),
    "__do_sys_chroot": Span("5.9", "the kernel's own use has init_chroot"),
    "__x64_sys_chroot": Span("5.9", "__do_sys_chroot, inlined"),
    "copy_process": Span(OLD, "RLIMIT_NPROC"),
}
