"""AppArmor as one process meets it: the profile that confines it, being confined by one, and what a profile may deny.

Source: Documentation/admin-guide/LSM/apparmor.rst, security/apparmor/procattr.c.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from profiler.kernel.namespaces import CLONE_NEWUSER, libc, oserror, unshare

# Where a kernel lets several modules label a process, each has a directory; `current` itself is then the first one's.
_ATTRIBUTES: Final = ("attr/apparmor/current", "attr/current")

# asm-generic/unistd.h: io_uring_setup came after the numbers were unified, so it is the same everywhere
_NR_IO_URING_SETUP: Final = 425
_IORING_SETUP_SQPOLL: Final = 1 << 1  # linux/io_uring.h
_IO_URING_PARAMS: Final = 120  # sizeof(struct io_uring_params), whose third word is the flags


def profile_of(pid: int) -> str:
    """The profile that confines the process `pid`; empty where none does, or where there is no AppArmor."""
    for attribute in _ATTRIBUTES:
        try:
            label = Path(f"/proc/{pid}/{attribute}").read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:  # no such file, or no module that labels (EINVAL)
            continue
        name, separator, _mode = label.rpartition(" (")
        return name if separator else ""
    return ""


def enter(profile: str) -> None:
    """Have the calling thread confined by `profile` from now on. OSError: EACCES for a process that is confined."""
    for attribute in _ATTRIBUTES:
        file = Path("/proc/thread-self") / attribute
        if file.exists():
            file.write_text(f"changeprofile {profile}", encoding="utf-8")
            return
    raise FileNotFoundError(f"no {_ATTRIBUTES[-1]}")


def make_user_namespace() -> None:
    """Move this process, which must have no other thread, to a user namespace of its own."""
    unshare(CLONE_NEWUSER)


def make_polling_ring() -> None:
    """Make an io_uring whose submissions a thread of the kernel polls for, and give it up."""
    params = ctypes.create_string_buffer(_IO_URING_PARAMS)
    ctypes.c_uint32.from_buffer(params, 8).value = _IORING_SETUP_SQPOLL
    fd = int(libc.syscall(_NR_IO_URING_SETUP, 1, ctypes.addressof(params), 0))
    if fd < 0:
        raise oserror("io_uring_setup(IORING_SETUP_SQPOLL)")
    os.close(fd)
