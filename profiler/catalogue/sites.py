"""Where in the kernel a capability is checked, and what a refusal there does to a workload. Data.

A row is keyed by the capability (None: any) and the check's site, the first kernel function above the capability
helpers; `calls`, where it is given, narrows the row to these system calls, `words` to calls with one of these among
their rendered arguments, `within` to stacks that hold one of these functions. The first row that fits counts. A site
without a row is `LIKELY`: the call would be refused. Sites were seen on Linux 6.18; on other kernels the same function
may have been inlined into its caller, so a row names both where both are known. `functions.py` tells since when.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from profiler.model import Doubt, KernelCheck


@dataclass(frozen=True)
class Site:
    """One row: what a refusal at this place means, and why."""

    capability: str | None
    functions: frozenset[str]
    doubt: Doubt
    why: str
    calls: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    within: frozenset[str] = frozenset()


def _site(
    capability: str | None,
    functions: str,
    doubt: Doubt,
    why: str,
    calls: str = "",
    words: str = "",
    within: str = "",
) -> Site:
    narrowing = (frozenset(text.split()) for text in (calls, words, within))
    return Site(capability, frozenset(functions.split()), doubt, why, *narrowing)


_NEVER = Doubt.NEGLIGIBLE
_MAYBE = Doubt.DOUBTFUL
_LIKELY = Doubt.LIKELY
_EVEN = Doubt.EVEN
_SURE = Doubt.CERTAIN

SITES: tuple[Site, ...] = (
    # Accounting and limits that only move a threshold
    _site(
        "SYS_ADMIN",
        "security_vm_enough_memory_mm cap_vm_enough_memory __vm_enough_memory",
        _NEVER,
        "memory accounting: SYS_ADMIN may use the last few per cent of memory (mm/util.c, __vm_enough_memory)",
    ),
    _site(
        "SYS_RESOURCE",
        "ext4_has_free_clusters btrfs_reserve_data_bytes xfs_mod_freecounter dquot_alloc_inode ignore_hardlimit",
        _NEVER,
        "reserved blocks and quotas: matters only on a full file system",
    ),
    _site(
        None,
        "alloc_pipe_info pipe_is_unprivileged_user too_many_pipe_buffers_hard",
        _NEVER,
        "a user with very many pipes: matters only beyond pipe-user-pages-soft",
    ),
    _site(
        "SYS_RESOURCE",
        "mqueue_get_inode mq_init_ns keyring_alloc",
        _MAYBE,
        "limits of message queues: a queue within the limits is created all the same",
    ),
    _site("SYS_RESOURCE", "__set_oom_adj", _MAYBE, "lowering oom_score_adj: most programs carry on"),
    # BPF and seccomp: constant blinding and what the verifier may leak
    _site(
        None,
        "do_jit bpf_jit_blind_constants bpf_int_jit_compile bpf_check bpf_prog_kallsyms_add array_map_alloc "
        "bpf_prog_select_runtime bpf_migrate_filter bpf_prepare_filter __get_filter",
        _NEVER,
        "a program is loaded either way: the check decides on hardening (kernel/bpf/core.c, bpf_jit_blinding_enabled)",
    ),
    # sysctl tables whose permission callback asks before it needs to know
    _site(
        None,
        "net_ctl_permissions pid_table_root_permissions set_permissions ipc_permissions",
        _NEVER,
        "the table's permission callback asks for every open and read of uid 0, which may do so anyway",
    ),
    # Lists that only leave something out
    _site(
        "SYS_ADMIN",
        "simple_xattr_list ext4_xattr_list_entries ext4_xattr_trusted_list xfs_xattr_put_listent listxattr "
        "vfs_listxattr",
        _MAYBE,
        "listing attributes: without it trusted.* names are left out",
    ),
    _site(
        "NET_ADMIN",
        "tcp_diag_dump udp_dump udp_diag_dump inet_diag_dump_icsk inet_sk_diag_fill inet_diag_msg_attrs_fill "
        "unix_diag_dump packet_diag_dump sk_diag_fill netlink_diag_dump raw_diag_dump",
        _MAYBE,
        "a list of sockets: without it marks and memory figures are left out",
    ),
    _site("SYS_ADMIN", "r_show", _MAYBE, "/proc/iomem and /proc/ioports show zeros without it"),
    _site("SYS_ADMIN", "pagemap_read", _MAYBE, "/proc/PID/pagemap hides frame numbers without it"),
    _site("SYSLOG", "kallsyms_show_value", _MAYBE, "/proc/kallsyms and /proc/modules show zeros without it"),
    _site("SYS_ADMIN", "proc_bus_pci_read pci_read_config", _MAYBE, "configuration space beyond 64 bytes is cut off"),
    # Probing and autoloading
    _site(
        "SYS_MODULE",
        "dev_ioctl dev_load tty_ldisc_get tty_ldisc_get.part.0 tcp_ca_find_autoload",
        _NEVER,
        "module autoload for a name that does not exist: most kernels load it through modprobe or not at all",
    ),
    _site("NET_ADMIN", "dev_load", _NEVER, "module autoload for a network interface that does not exist"),
    _site("NET_ADMIN", "do_tcp_setsockopt", _MAYBE, "a congestion control that is not in the allowed list"),
    _site(
        "NET_ADMIN",
        "sk_setsockopt",
        _MAYBE,
        "a buffer beyond net.core.rmem_max or a priority: programs take what they get",
        "setsockopt",
        "SO_RCVBUFFORCE SO_SNDBUFFORCE SO_PRIORITY SO_BUSY_POLL",
    ),
    _site("NET_ADMIN", "__vsock_create", _NEVER, "a vsock is created either way: the check marks it as trusted"),
    _site("NET_ADMIN", "rtnl_link_get_net_capable rtnl_get_net_ns_capable", _NEVER, "asked beside rtnetlink_rcv_msg"),
    _site("SYS_TTY_CONFIG", "vt_ioctl vt_k_ioctl", _MAYBE, "asked at the start of every VT ioctl, whichever it is"),
    _site("IPC_LOCK", "io_uring_setup io_uring_create", _NEVER, "memory accounting of the rings"),
    _site(None, "madvise_pageout madvise_cold_or_pageout_pte_range do_mincore can_do_mincore", _NEVER, "advice only"),
    _site(
        "FSETID",
        "setattr_should_drop_suidgid setattr_should_drop_sgid",
        _LIKELY,
        "without it writing to a file removes its setuid and setgid bits",
    ),
    _site(
        "FSETID",
        "setattr_prepare setattr_copy mode_strip_sgid posix_acl_update_mode inode_init_owner",
        _MAYBE,
        "without it the setgid bit of a file of a foreign group is dropped",
    ),
    # Credentials
    _site(
        "SETPCAP",
        "cap_capset cap_inh_is_capped",
        _NEVER,
        "asked in every capset: only an inheritable set beyond the permitted one needs it",
    ),
    _site(
        None,
        "bprm_caps_from_vfs_caps",
        _SURE,
        "the file carries this capability: without it in the bounding set exec refuses the file with EPERM",
        "execve",
    ),
    _site(
        None,
        "cap_bprm_creds_from_file handle_privileged_root begin_new_exec bprm_execve",
        _NEVER,
        "asked for a traced program at exec",
    ),
    _site("SETUID", "__sys_setfsuid", _LIKELY, "setfsuid tells no error, but files are then another user's"),
    _site("SETGID", "__sys_setfsgid", _LIKELY, "setfsgid tells no error, but files are then another group's"),
    # Asking whether something would be allowed
    _site(None, "generic_permission", _MAYBE, "access(2) asks: a no is no error", "access faccessat faccessat2"),
    _site(
        None,
        "generic_permission",
        _NEVER,
        "asks whether the program's file may be read: without it the process only cannot be dumped (fs/exec.c)",
        "execve execveat",
        within="would_dump",
    ),
    _site(
        "DAC_READ_SEARCH",
        "generic_permission",
        _MAYBE,
        "the way to a program: a search through PATH goes on with the next directory",
        "execve execveat",
        within="link_path_walk",
    ),
    _site(
        "DAC_READ_SEARCH",
        "generic_permission",
        _MAYBE,
        "a file's status: a search through a private directory",
        "readlink readlinkat",
    ),
    _site(None, "generic_permission", _LIKELY, "the program may not be executed", "execve execveat"),
    _site(
        "FOWNER",
        "may_open inode_owner_or_capable do_fcntl",
        _MAYBE,
        "O_NOATIME: programs open again without it",
        "open openat openat2 fcntl",
    ),
    # Files of others: who fills a directory for its owner, or cleans up, tells of a refusal and often goes on
    _site(None, "generic_permission", _EVEN, "another user's file or directory"),
    _site("FOWNER", "setattr_prepare", _EVEN, "another user's file: its mode or times"),
    _site(
        "SYS_PTRACE",
        "__ptrace_may_access cap_ptrace_access_check",
        _LIKELY,
        "another process is inspected",
        "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp move_pages get_robust_list",
    ),
    _site(
        "SYS_PTRACE",
        "__ptrace_may_access cap_ptrace_access_check",
        _EVEN,
        "a file of another process below /proc is refused; who looks at every process goes on with the next",
        "open openat openat2 readlink readlinkat stat lstat newfstatat statx",
    ),
    _site(
        "SYS_PTRACE",
        "__ptrace_may_access cap_ptrace_access_check",
        _MAYBE,
        "a file of another process below /proc is read: without it some figures are zeros (do_task_stat)",
    ),
    _site("SYS_ADMIN", "ovl_get_fh ovl_can_decode_fh", _NEVER, "overlayfs asks for its mounter"),
    _site(
        "DAC_READ_SEARCH",
        "ovl_can_decode_fh",
        _MAYBE,
        "overlayfs mounts either way: without it, it keeps no index (fs/overlayfs/util.c, ovl_can_decode_fh)",
    ),
    _site(
        "KILL",
        "check_kill_permission kill_ok_by_cred",
        _MAYBE,
        "a signal to another user's process: what a service has started ends with it all the same",
    ),
    # Accounts and logs of log-in programs
    _site(
        "AUDIT_WRITE",
        "audit_receive_msg audit_netlink_ok",
        _MAYBE,
        "a record for the audit log: log-in programs carry on where the kernel refuses it",
    ),
    _site("AUDIT_CONTROL", "audit_set_loginuid proc_loginuid_write", _MAYBE, "pam_loginuid ignores a refusal"),
    _site(
        "SYS_NICE",
        "set_task_ioprio",
        _NEVER,
        "the priority of the journal's thread: ext4 mounts without it too (fs/ext4/super.c)",
        "mount fsconfig mount_setattr",
    ),
    # Priorities
    _site(
        "SYS_NICE",
        "can_nice set_one_prio set_task_ioprio ioprio_check_cap __sched_setscheduler",
        _EVEN,
        "a priority: nice(1) carries on without it, chrt(1) and renice(1) do not",
    ),
    _site(
        "IPC_LOCK",
        "do_mlock __do_sys_mlockall do_mmap can_do_mlock",
        _MAYBE,
        "locked memory beyond RLIMIT_MEMLOCK: many programs carry on without it",
    ),
    _site("SYS_RESOURCE", "do_prlimit __do_sys_prlimit64", _MAYBE, "raising a hard limit: many programs carry on"),
    _site("SYS_ADMIN", "blkdev_common_ioctl blkdev_flushbuf", _MAYBE, "flushing a block device's buffers"),
    _site("SYS_ADMIN", "fanotify_init __do_sys_fanotify_init", _MAYBE, "an unprivileged group is possible too"),
    _site("PERFMON", "__do_sys_perf_event_open", _MAYBE, "counting one's own processes needs nothing"),
    _site(
        "PERFMON", "perf_allow_kernel", _EVEN, "counting in the kernel, too: perf(1) then counts in user space alone"
    ),
    # Refusals that no program survives
    _site(
        "SYS_ADMIN",
        "path_mount may_mount unshare_nsproxy_namespaces copy_namespaces",
        _SURE,
        "mounts and namespaces",
    ),
    _site("SYS_CHROOT", "__x64_sys_chroot ksys_chroot __do_sys_chroot", _SURE, "chroot"),
    _site(
        "SETUID",
        "__sys_setuid __sys_setresuid __sys_setreuid",
        _LIKELY,
        "taking another user's id: a program that passes without it runs on as who it was",
    ),
    _site(
        "SETGID",
        "__sys_setgid __sys_setresgid __sys_setregid __do_sys_setgroups may_setgroups",
        _LIKELY,
        "taking another group's id: a program that passes without it runs on as who it was",
    ),
)

# Compares what another process of the same user is permitted with what the asking one has in effect.
SUBSET_RULE = "cap_ptrace_access_check"


def site_of(check: KernelCheck, call: str | None, args: Container[str]) -> Site | None:
    """The row of `check`, made in `call` with these rendered arguments; None where there is none."""
    for row in SITES:
        if (
            (row.capability is None or row.capability == check.capability)
            and check.site in row.functions
            and (not row.calls or call in row.calls)
            and (not row.words or any(word in args for word in row.words))
            and (not row.within or not row.within.isdisjoint(name.partition(".")[0] for name in check.stack))
        ):
            return row
    return None


# Calls that programs make on the chance: refused by an engine's filter they go another way. Placement of memory
# (libnuma), another way of I/O (liburing's users, libuv), another way to tell mounts and files apart (systemd,
# util-linux, Mesa), hanging up one's own terminal (login), a session keyring of one's own (pam_keyinit; runc insists),
# a faster way to a tracee's memory (strace, gdb and libunwind read it word by word instead).
ON_THE_CHANCE: frozenset[str] = frozenset(
    {
        "get_mempolicy", "set_mempolicy", "mbind", "set_mempolicy_home_node", "migrate_pages", "move_pages",
        "io_uring_setup", "io_uring_enter", "io_uring_register", "name_to_handle_at", "kcmp", "vhangup", "keyctl",
        "process_vm_readv",
    }
)  # fmt: skip
