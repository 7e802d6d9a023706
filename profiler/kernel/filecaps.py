"""The capabilities that a file carries: `security.capability`, and how to reach a file below another root.

Sources: linux/capability.h (struct vfs_cap_data), capabilities(7), openat2(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass

from profiler.kernel.capabilities import CAPABILITIES
from profiler.kernel.namespaces import oserror

XATTR = "security.capability"
# linux/capability.h
VFS_CAP_REVISION_MASK = 0xFF000000
VFS_CAP_REVISION_1 = 0x01000000
VFS_CAP_FLAGS_EFFECTIVE = 0x000001

NR_OPENAT2 = 437  # asm-generic/unistd.h: the same everywhere
RESOLVE_IN_ROOT = 0x10  # linux/openat2.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True)
class FileCapabilities:
    """What a file carries. `effective`: exec fails with EPERM unless the process gets all of `permitted`."""

    permitted: frozenset[str]
    effective: bool


def parse(value: bytes) -> FileCapabilities:
    """Read the attribute's bytes (any revision). Raises ValueError when they are cut off."""
    try:
        magic, low = struct.unpack_from("<II", value)
        high = 0 if magic & VFS_CAP_REVISION_MASK == VFS_CAP_REVISION_1 else struct.unpack_from("<I", value, 12)[0]
    except struct.error as error:
        raise ValueError(f"{XATTR} of {len(value)} bytes") from error
    mask = high << 32 | low
    permitted = frozenset(name for number, name in enumerate(CAPABILITIES) if mask >> number & 1)
    return FileCapabilities(permitted, bool(magic & VFS_CAP_FLAGS_EFFECTIVE))


def carried(path: str) -> FileCapabilities | None:
    """What the file at `path` (followed) carries; None without any. Raises OSError when it cannot be read."""
    try:
        return parse(os.getxattr(path, XATTR))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


class _OpenHow(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root: int, path: str) -> int:
    """An O_PATH descriptor of `path` below the directory descriptor `root`, links resolved as if chrooted to it.

    Raises OSError (ENOENT, or ENOSYS before Linux 5.6).
    """
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT)
    fd: int = _libc.syscall(NR_OPENAT2, root, os.fsencode(path), ctypes.addressof(how), ctypes.sizeof(how))
    if fd < 0:
        raise oserror(f"openat2({path})")
    return fd
