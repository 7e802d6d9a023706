"""Renders a notified call for people, as strace would: its name, its arguments, the file that it is about.

One row a call in `SIGNATURES`: a renderer an argument. Adding a call is adding a row; a call without one is printed
with its six registers. Nothing here fails: the tracee may be gone, and its pointers may lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from profiler.catalogue.calls import FOREIGN, name_of
from profiler.kernel.bpf import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, X32_SYSCALL_BIT
from profiler.kernel.notify import Notification
from profiler.tracer.decode import constants, netlink, observers, structs
from profiler.tracer.decode.values import (
    Args,
    Renderer,
    Tracee,
    device,
    fd,
    flags,
    hexadecimal,
    ident,
    long,
    named,
    number,
    octal,
    path,
    pointer,
    process,
    signal_name,
    signed,
    size,
    text,
)

Resolver = Callable[[Tracee, Args], str | None]


class DecodedCall(NamedTuple):
    """A call for people. `path` is absolute, as the tracee sees it; None when the call is not about one file."""

    name: str
    args: tuple[str, ...]
    path: str | None


class Signature(NamedTuple):
    """How a call's arguments are shown, and which file it is about."""

    renderers: tuple[Renderer, ...]
    path: Resolver | None = None


def _path_at(index: int, dir_index: int | None = None) -> Resolver:
    def resolve(tracee: Tracee, args: Args) -> str | None:
        if dir_index is None:
            return tracee.path(args[index])
        return tracee.path(args[index], signed(args[dir_index]))

    return resolve


def _fd_at(index: int) -> Resolver:
    return lambda tracee, args: tracee.fd(signed(args[index]))


def _unix_socket(tracee: Tracee, args: Args) -> str | None:
    name = structs.unix_path(tracee.bytes(args[1], args[2] & 0xFF))
    return None if name is None else tracee.absolute(name)


def _call(*renderers: Renderer, about: Resolver | None = None) -> Signature:
    """A signature. The file is the first `path`, relative to an `fd` just before it, else the first argument's `fd`."""
    if about is None and path in renderers:
        index = renderers.index(path)
        about = _path_at(index, index - 1 if index and renderers[index - 1] is fd else None)
    elif about is None and renderers and renderers[0] is fd:
        about = _fd_at(0)
    return Signature(renderers, about)


_AT = flags(constants.AT_FLAGS)
_XATTR = flags(constants.XATTR_FLAGS)
_CLOCK = named(constants.CLOCKS)
_RESOURCE = named(constants.RESOURCES)
_IPC = named(constants.IPC_COMMANDS)
_ACCESS = flags(constants.ACCESS_CHECKS, zero="F_OK")

SIGNATURES: Final[Mapping[str, Signature]] = {
    # mounts and namespaces
    "mount": _call(text, path, text, structs.mount_flags, structs.mount_data),
    "umount2": _call(path, flags(constants.UMOUNT_FLAGS)),
    "pivot_root": _call(path, path),
    "fsopen": _call(text, flags(constants.FSOPEN_FLAGS)),
    "fsconfig": _call(number, named(constants.FSCONFIG_COMMANDS), text, structs.config_value, number),
    "fsmount": _call(number, flags(constants.FSMOUNT_FLAGS), flags(constants.MOUNT_ATTRIBUTES)),
    "fspick": _call(fd, path, flags(constants.FSPICK_FLAGS)),
    "open_tree": _call(fd, path, flags(constants.OPEN_TREE_FLAGS)),
    "open_tree_attr": _call(fd, path, flags(constants.OPEN_TREE_FLAGS), structs.mount_attributes, size),
    "move_mount": _call(fd, path, fd, path, flags(constants.MOVE_MOUNT_FLAGS), about=_path_at(3, 2)),
    "mount_setattr": _call(fd, path, _AT, structs.mount_attributes, size),
    "setns": _call(fd, flags(constants.UNSHARE_FLAGS)),
    "unshare": _call(flags(constants.UNSHARE_FLAGS)),
    "clone": _call(structs.clone_flags),
    "chroot": _call(path),
    "sethostname": _call(text, size),
    "setdomainname": _call(text, size),
    # the machine
    "init_module": _call(pointer, size, text),
    "finit_module": _call(fd, text, hexadecimal),
    "delete_module": _call(text, flags(constants.OPEN_FLAGS)),
    "kexec_load": _call(pointer, size, pointer, hexadecimal),
    "kexec_file_load": _call(fd, fd, size, text, hexadecimal),
    "reboot": _call(hexadecimal, hexadecimal, named(constants.REBOOT_COMMANDS, hexadecimal), pointer),
    "swapon": _call(path, hexadecimal),
    "swapoff": _call(path),
    "acct": _call(path),
    "settimeofday": _call(pointer, pointer),
    "clock_settime": _call(_CLOCK, pointer),
    "adjtimex": _call(pointer),
    "clock_adjtime": _call(_CLOCK, pointer),
    "iopl": _call(number),
    "ioperm": _call(hexadecimal, size, number),
    "syslog": _call(named(constants.SYSLOG_ACTIONS), pointer, number),
    "quotactl": _call(structs.quota_command, path, number, pointer),
    "quotactl_fd": _call(fd, structs.quota_command, number, pointer),
    "vhangup": _call(),
    "timerfd_create": _call(_CLOCK, hexadecimal),
    "timer_create": _call(_CLOCK, pointer, pointer),
    # observing and steering
    "perf_event_open": _call(observers.perf_event, number, number, number, hexadecimal),
    "userfaultfd": _call(flags(constants.USERFAULTFD_FLAGS)),
    "keyctl": _call(named(constants.KEYCTL_COMMANDS), structs.key, long, long, long),
    "add_key": _call(text, text, pointer, size, number),
    "request_key": _call(text, text, text, number),
    "io_uring_setup": _call(number, structs.uring_parameters),
    "memfd_secret": _call(hexadecimal),
    "bpf": _call(named(constants.BPF_COMMANDS), observers.bpf_attributes, size),
    "ptrace": _call(named(constants.PTRACE_REQUESTS, hexadecimal), number, pointer, hexadecimal),
    "process_vm_readv": _call(number, pointer, size, pointer, size, hexadecimal),
    "process_vm_writev": _call(number, pointer, size, pointer, size, hexadecimal),
    "kcmp": _call(number, number, number, size, size),
    "pidfd_getfd": _call(fd, number, hexadecimal, about=lambda _, __: None),
    "process_madvise": _call(number, pointer, size, number, hexadecimal),
    "process_mrelease": _call(number, hexadecimal),
    "move_pages": _call(number, size, pointer, pointer, pointer, flags(constants.MEMPOLICY_FLAGS)),
    "migrate_pages": _call(number, size, pointer, pointer),
    "get_robust_list": _call(number, pointer, pointer),
    "mbind": _call(pointer, size, number, pointer, size, flags(constants.MEMPOLICY_FLAGS)),
    "madvise": _call(pointer, size, named(constants.MADVICE)),
    "kill": _call(process, signal_name),
    "pidfd_send_signal": _call(number, signal_name, pointer, hexadecimal),
    "rt_sigqueueinfo": _call(process, signal_name, pointer),
    # credentials
    **{name: _call(ident) for name in ("setuid", "setgid", "setfsuid", "setfsgid")},
    **{name: _call(ident, ident) for name in ("setreuid", "setregid")},
    **{name: _call(ident, ident, ident) for name in ("setresuid", "setresgid")},
    "setgroups": _call(size, structs.groups),
    "capset": _call(structs.capability_header, structs.capability_sets),
    "landlock_restrict_self": _call(number, hexadecimal),
    "prctl": _call(named(constants.PRCTL_OPTIONS), structs.prctl_argument, structs.prctl_ambient),
    "seccomp": _call(named(constants.SECCOMP_OPERATIONS), flags(constants.SECCOMP_FILTER_FLAGS), pointer),
    "personality": _call(flags(constants.PERSONALITY_FLAGS)),
    # scheduling and limits
    "setpriority": _call(named(constants.PRIORITY_KINDS), number, number),
    "ioprio_set": _call(named(constants.IOPRIO_KINDS), number, structs.io_priority),
    "sched_setscheduler": _call(number, named(constants.POLICIES), structs.scheduling_priority),
    "sched_setparam": _call(number, structs.scheduling_priority),
    "sched_setattr": _call(number, structs.scheduling_policy, hexadecimal),
    "sched_setaffinity": _call(number, size, pointer),
    "setrlimit": _call(_RESOURCE, structs.limit),
    "prlimit64": _call(number, _RESOURCE, structs.limit, pointer),
    "mlock": _call(pointer, size),
    "mlock2": _call(pointer, size, hexadecimal),
    "mlockall": _call(flags(constants.MLOCKALL_FLAGS)),
    "mmap": _call(pointer, size, flags(constants.PROTECTIONS), flags(constants.MAP_FLAGS), number, size),
    "shmget": _call(hexadecimal, size, flags(constants.SHM_FLAGS)),
    "shmctl": _call(number, _IPC, pointer),
    "msgctl": _call(number, _IPC, pointer),
    "semctl": _call(number, number, _IPC, pointer),
    "mq_open": _call(text, structs.open_flags, octal, pointer),
    # files
    **{name: _call(path, ident, ident) for name in ("chown", "lchown")},
    "fchown": _call(fd, ident, ident),
    "fchownat": _call(fd, path, ident, ident, _AT),
    "chmod": _call(path, octal),
    "fchmod": _call(fd, octal),
    "fchmodat": _call(fd, path, octal),
    "fchmodat2": _call(fd, path, octal, _AT),
    "mknod": _call(path, octal, device),
    "mknodat": _call(fd, path, octal, device),
    **{name: _call(path, text, pointer, size, _XATTR) for name in ("setxattr", "lsetxattr")},
    "fsetxattr": _call(fd, text, pointer, size, _XATTR),
    "setxattrat": _call(fd, path, _AT, text, pointer, size),
    **{name: _call(path, text) for name in ("removexattr", "lremovexattr")},
    "fremovexattr": _call(fd, text),
    "removexattrat": _call(fd, path, _AT, text),
    "open": _call(path, structs.open_flags, octal),
    "openat": _call(fd, path, structs.open_flags, octal),
    "openat2": _call(fd, path, structs.open_how, size),
    "creat": _call(path, octal),
    "truncate": _call(path, long),
    "open_by_handle_at": _call(fd, pointer, structs.open_flags, about=lambda _, __: None),
    "fanotify_init": _call(flags(constants.FANOTIFY_INIT_FLAGS), structs.open_flags),
    "fanotify_mark": _call(number, flags(constants.FANOTIFY_MARK_FLAGS), hexadecimal, fd, path),
    "file_setattr": _call(fd, path, pointer, size, _AT),
    "linkat": _call(fd, path, fd, path, _AT),
    "fcntl": _call(fd, named(constants.FCNTL_COMMANDS), structs.fcntl_argument),
    # devices and sockets
    "ioctl": _call(fd, structs.ioctl_command, structs.ioctl_argument),
    "socket": _call(named(constants.FAMILIES), structs.socket_type, structs.socket_protocol),
    "bind": _call(number, structs.address, size, about=_unix_socket),
    "connect": _call(number, structs.address, size, about=_unix_socket),
    "setsockopt": _call(number, named(constants.SOCKET_LEVELS), structs.set_option, structs.option_value, size),
    "getsockopt": _call(number, named(constants.SOCKET_LEVELS), structs.get_option),
    # too frequent for the traced run: watched where a run without a member tells what it is refused
    "sendto": _call(netlink.socket_fd, netlink.buffer, size, netlink.flags_of, structs.destination),
    "sendmsg": _call(netlink.socket_fd, netlink.message_header, netlink.flags_of),
    "sendmmsg": _call(netlink.socket_fd, netlink.message_header, size, netlink.flags_of),
    "execve": _call(path, structs.arguments),
    "execveat": _call(fd, path, structs.arguments),
    "access": _call(path, _ACCESS),
    **{name: _call(fd, path, _ACCESS) for name in ("faccessat", "faccessat2")},
    **{
        name: _call(path) for name in ("stat", "lstat", "statfs", "chdir", "unlink", "rmdir", "listxattr", "llistxattr")
    },
    **{name: _call(path, pointer) for name in ("utime", "utimes")},
    **{name: _call(path, text) for name in ("getxattr", "lgetxattr")},
    "fgetxattr": _call(fd, text),
    "newfstatat": _call(fd, path, about=_path_at(1, 0)),
    "statx": _call(fd, path, _AT),
    "readlink": _call(path),
    "readlinkat": _call(fd, path),
    "unlinkat": _call(fd, path, _AT),
    "mkdir": _call(path, octal),
    "mkdirat": _call(fd, path, octal),
    **{name: _call(path, path) for name in ("rename", "link")},
    "renameat": _call(fd, path, fd, path),
    "renameat2": _call(fd, path, fd, path, flags(constants.RENAME_FLAGS)),
    "symlink": _call(text, path),
    "symlinkat": _call(text, fd, path, about=_path_at(2, 1)),
    "utimensat": _call(fd, path, pointer, _AT),
    "futimesat": _call(fd, path, pointer),
    "inotify_add_watch": _call(number, path, hexadecimal),
    **{name: _call(fd, pointer, size) for name in ("read", "write", "pread64", "pwrite64", "getdents64")},
    **{name: _call(fd, pointer, number) for name in ("readv", "writev")},
    "ftruncate": _call(fd, long),
    "fallocate": _call(fd, hexadecimal, long, long),
    "io_uring_enter": _call(number, number, number, hexadecimal),
    "io_uring_register": _call(number, number, pointer, number),
    "epoll_ctl": _call(number, number, number, pointer),
    "clone3": _call(structs.clone3_flags, size),
    "tgkill": _call(number, number, signal_name),
    "tkill": _call(number, signal_name),
    "shmat": _call(number, pointer, hexadecimal),
}
# Where the mode is: open(2) reads it only when it makes a file, otherwise the register holds something else.
MODES: Final = {"open": 2, "openat": 3, "mq_open": 2}
_RAW = Signature((hexadecimal,) * 6)


def call_name(number: int, arch: int) -> str:
    """The name of a call as the kernel's table for its architecture has it."""
    if arch == AUDIT_ARCH_I386:
        return name_of(number, FOREIGN)
    return name_of(number & ~X32_SYSCALL_BIT)


def decode(notification: Notification, pid: int) -> DecodedCall:
    """The call of `notification`, made by the thread `pid`, whose memory it reads while the call waits.

    A 32-bit call has the i386 name and its registers as numbers. Never fails.
    """
    name = call_name(notification.number, notification.arch)
    signature = SIGNATURES.get(name, _RAW) if notification.arch == AUDIT_ARCH_X86_64 else _RAW
    tracee, args = Tracee(pid), notification.args
    shown = tuple([render(value, tracee, args) for render, value in zip(signature.renderers, args, strict=False)])
    mode = MODES.get(name)
    if mode is not None and not any(flag in shown[mode - 1] for flag in ("O_CREAT", "O_TMPFILE")):
        shown = shown[:mode]
    elif name == "keyctl":
        shown = shown[: 1 + constants.KEYCTL_ARGUMENTS.get(shown[0], len(shown))]
    return DecodedCall(name, shown, signature.path(tracee, args) if signature.path else None)
