"""Namespaces, mounts and process handles: thin wrappers around the C library, each of which raises one `OSError`.

Every foreign function is declared once, here; the other modules of this room import `libc` and `oserror`. Nothing here
decides anything. Sources: unshare(2), setns(2), mount(2), pivot_root(2), prctl(2), pidfd_open(2), pidfd_getfd(2).
"""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import signal
from collections.abc import Iterable

# linux/sched.h
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/nsfs.h (Linux 6.18; the same in the kernel since 3.8, include/linux/proc_ns.h)
PID_NS_INIT_INO = 0xEFFFFFFC

# linux/mount.h
MS_RDONLY = 1 << 0
MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2
MS_NOEXEC = 1 << 3
MS_REMOUNT = 1 << 5
MS_NOATIME = 1 << 10
MS_BIND = 1 << 12
MS_MOVE = 1 << 13
MS_REC = 1 << 14
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

_MOUNT_OPTIONS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "noatime": MS_NOATIME,
    "relatime": MS_RELATIME,
}

# linux/fs.h
MNT_FORCE = 1
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# asm-generic/unistd.h: pidfd_getfd came after the numbers were unified, so it is the same everywhere
NR_PIDFD_GETFD = 438

Path = str | os.PathLike[str]

libc = ctypes.CDLL(None, use_errno=True)

libc.unshare.argtypes = (ctypes.c_int,)
libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
libc.pivot_root.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
libc.sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
libc.syscall.argtypes = (ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
libc.syscall.restype = ctypes.c_long


def oserror(call: str, path: Path | None = None, errno: int = 0) -> OSError:
    """The error of a call of the C library: `errno` (the last one of this thread when 0) as the OSError that fits.

    `call` and `path` are named in its text. The caller raises it.
    """
    number = errno or ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}", None if path is None else os.fspath(path))


def _bytes(path: Path | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def mount_flags(options: Iterable[str]) -> int:
    """The MS_* flags of a mount's options, as proc_pid_mountinfo(5) writes them: what a remount must name to keep."""
    return functools.reduce(operator.or_, (_MOUNT_OPTIONS.get(option, 0) for option in options), 0)


def unshare(flags: int) -> None:
    """Leave the namespaces in `flags` (CLONE_NEW*) for new ones; CLONE_NEWPID holds for later children only."""
    if libc.unshare(flags) < 0:
        raise oserror(f"unshare({flags:#x})")


def setns(fd: int, flags: int = 0) -> None:
    """Enter the namespace of `fd` (an open /proc/PID/ns/*, or a pidfd together with CLONE_NEW* `flags`)."""
    if libc.setns(fd, flags) < 0:
        raise oserror(f"setns({fd}, {flags:#x})")


def mount(
    source: Path | None, target: Path, fstype: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """mount(2). `flags` are MS_*; `data` the file system's own options, comma-separated."""
    options = None if data is None else os.fsencode(data)
    if libc.mount(_bytes(source), _bytes(target), _bytes(fstype), flags, options) < 0:
        raise oserror(f"mount({fstype or 'none'}, {flags:#x})", target)


def umount2(target: Path, flags: int = 0) -> None:
    """umount2(2). `flags` are MNT_* and UMOUNT_NOFOLLOW."""
    if libc.umount2(_bytes(target), flags) < 0:
        raise oserror(f"umount2({flags:#x})", target)


def pivot_root(new: Path, old: Path) -> None:
    """Make the mount `new` the root of this mount namespace and put the old root at `old`, below `new` or equal to it.

    EINVAL when `new` is no mount point or a parent mount is shared.
    """
    if libc.pivot_root(_bytes(new), _bytes(old)) < 0:
        raise oserror("pivot_root", new)


def in_initial_pid_namespace() -> bool:
    """Whether this process, and what it forks, is numbered as the kernel itself numbers it."""
    try:
        numbers = {os.stat(f"/proc/self/ns/{name}").st_ino for name in ("pid", "pid_for_children")}  # noqa: PTH116
    except OSError:  # no /proc, or nobody has been forked in a new namespace (pid_namespaces(7))
        return False
    return numbers == {PID_NS_INIT_INO}


def is_apart(pid: int, kind: str) -> bool:
    """Whether the process `pid` has another namespace of this kind (a name in /proc/PID/ns) than we have; False where
    that cannot be told."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino  # noqa: PTH116
    except OSError:
        return False


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace (at most 64 bytes)."""
    encoded = os.fsencode(name)
    if libc.sethostname(encoded, len(encoded)) < 0:
        raise oserror(f"sethostname({name})")


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) on the calling thread; returns what it returns."""
    result = int(libc.prctl(option, arg2, arg3, arg4, arg5))
    if result < 0:
        raise oserror(f"prctl({option}, {arg2})")
    return result


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send `number` to this process when the *thread* that made it ends (PR_SET_PDEATHSIG).

    A parent that ended before is not noticed: the caller checks os.getppid() afterwards. Executing a set-uid file or a
    file with capabilities clears it.
    """
    prctl(PR_SET_PDEATHSIG, number)


def pidfd_open(pid: int, flags: int = 0) -> int:
    """A file descriptor (close-on-exec) that stands for the process `pid` and for no later one of that number."""
    return os.pidfd_open(pid, flags)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A duplicate (close-on-exec) of the descriptor `fd` of the process of `pidfd`. Needs ptrace access to it."""
    result = int(libc.syscall(NR_PIDFD_GETFD, pidfd, fd, 0))
    if result < 0:
        raise oserror(f"pidfd_getfd({pidfd}, {fd})")
    return result


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Send the signal `number` to the process of `pidfd`; 0 only checks that it is there. ESRCH when it is reaped."""
    signal.pidfd_send_signal(pidfd, number)
