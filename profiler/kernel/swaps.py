"""Swap areas: which are active, and switching them off, also where the file system is mounted nowhere any more.

An active area holds its file, which holds its file system, which holds its device: all of that outlives the mount
namespace in which swapon(2) was called. Sources: swapon(2), proc_swaps(5), mm/swapfile.c, fsopen(2), fsmount(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from profiler.kernel.filecaps import open_in_root
from profiler.kernel.mountinfo import unescape
from profiler.kernel.namespaces import oserror

# asm-generic/unistd.h: these came after the numbers were unified
NR_FSOPEN: Final = 430
NR_FSCONFIG: Final = 431
NR_FSMOUNT: Final = 432
# linux/mount.h
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_NODEV: Final = 0x4

_SWAPS = Path("/proc/swaps")
_FILESYSTEMS = Path("/proc/filesystems")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.swapoff.argtypes = (ctypes.c_char_p,)
_libc.syscall.restype = ctypes.c_long


def swap_files() -> tuple[str, ...]:
    """The paths of the swap areas that are files: below the root of their own mount, where that is out of sight."""
    try:
        lines = _SWAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1:]
    except FileNotFoundError:  # a kernel without CONFIG_SWAP
        return ()
    return tuple(unescape(words[0]) for words in map(str.split, lines) if words[1:2] == ["file"])


def swapoff(path: str) -> bool:
    """Switch off the swap area in the file or on the device `path`; False where there is none. Raises OSError."""
    if _libc.swapoff(os.fsencode(path)) == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOENT, errno.ENXIO):
        return False
    raise oserror(f"swapoff({path})")


def swapoff_below(directory: int, files: tuple[str, ...]) -> tuple[str, ...]:
    """Switch off those of `files` (see `swap_files`) that lie below `directory`, an open directory; returns them.

    A path may begin above the mount that the directory is the root of. Raises OSError.
    """
    return tuple(file for file in files if any(_swapoff_at(directory, path) for path in _ends(file)))


def _ends(path: str) -> Iterator[str]:
    """`/a/b/c` as it is, then `/b/c`, then `/c`."""
    parts = PurePosixPath(path).parts[1:]
    return ("/" + "/".join(parts[start:]) for start in range(len(parts)))


def _swapoff_at(directory: int, path: str) -> bool:
    try:
        fd = open_in_root(directory, path)
    except OSError:
        return False
    try:
        return swapoff(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@contextlib.contextmanager
def still_on(node: str) -> Iterator[int | None]:
    """The root directory of the file system that still is on the block device `node`, although nothing shows it.

    It is a mount of no namespace, gone with the block. None where the device holds none: nothing is mounted anew, so
    nothing that a workload wrote is read as a file system here.
    """
    fd = _mounted_again(node) if _is_claimed(node) else None
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _is_claimed(node: str) -> bool:
    """Whether a file system (or another exclusive user) has the block device: open(2), O_EXCL."""
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _mounted_again(node: str) -> int | None:
    """The kernel finds the file system by type and device (sget_dev in fs/super.c); with another type it gets EBUSY,
    as the device is claimed."""
    for line in _FILESYSTEMS.read_text(encoding="ascii").splitlines():
        flag, _, fstype = line.partition("\t")
        if not flag:
            with contextlib.suppress(OSError):
                return _fsmount(fstype, node)
    return None


def _fsmount(fstype: str, source: str) -> int:
    """An O_PATH descriptor of the root of a new mount that is in no namespace. Raises OSError."""
    context = _call("fsopen", NR_FSOPEN, os.fsencode(fstype), FSOPEN_CLOEXEC)
    try:
        _call("fsconfig", NR_FSCONFIG, context, FSCONFIG_SET_STRING, b"source", os.fsencode(source))
        _call("fsconfig", NR_FSCONFIG, context, FSCONFIG_CMD_CREATE)
        return _call("fsmount", NR_FSMOUNT, context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
    finally:
        os.close(context)


def _call(name: str, number: int, *arguments: int | bytes | None) -> int:
    """A system call for which C libraries before 2022 have no function. Raises OSError."""
    words = [a if isinstance(a, bytes | None) else ctypes.c_long(a) for a in (*arguments, None, None, None)[:5]]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise oserror(name)
    return result
