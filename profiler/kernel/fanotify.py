"""fanotify groups that report which file was opened or closed, by file handle, without opening it themselves.

With FAN_REPORT_FID an event carries the file's handle instead of a descriptor (fanotify(7)): a device node is watched
without ever being opened by us. The handle is matched with what name_to_handle_at(2) says of a known node.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from profiler.kernel.namespaces import libc, oserror

# linux/fanotify.h
FAN_OPEN: Final = 0x20
FAN_CLOSE_WRITE: Final = 0x08
FAN_CLOSE_NOWRITE: Final = 0x10
FAN_CREATE: Final = 0x100
FAN_Q_OVERFLOW: Final = 0x4000
FAN_ONDIR: Final = 0x40000000
FAN_EVENT_ON_CHILD: Final = 0x08000000
FAN_CLOEXEC: Final = 0x1
FAN_NONBLOCK: Final = 0x2
FAN_CLASS_NOTIF: Final = 0x0
FAN_UNLIMITED_QUEUE: Final = 0x10
FAN_UNLIMITED_MARKS: Final = 0x20
FAN_REPORT_FID: Final = 0x200
FAN_REPORT_DFID_NAME: Final = 0xC00  # Linux 5.9
FAN_MARK_ADD: Final = 0x1
FAN_MARK_REMOVE: Final = 0x2
FAN_MARK_DONT_FOLLOW: Final = 0x4
FAN_EVENT_INFO_TYPE_FID: Final = 1
FAN_EVENT_INFO_TYPE_DFID_NAME: Final = 2

# linux/fcntl.h
AT_FDCWD: Final = -100
AT_HANDLE_FID: Final = 0x200
_MAX_HANDLE_SZ: Final = 128

# struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid
_METADATA = struct.Struct("=IBBHQii")
# struct fanotify_event_info_header and __kernel_fsid_t, then struct file_handle: handle_bytes, handle_type
_FID = struct.Struct("=BxH8sIi")
_HANDLE = struct.Struct("=Ii")
_READ_SIZE = 64 * 1024

libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)
libc.name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_int),
    ctypes.c_int,
)


class FileHandle(NamedTuple):
    """What names a file in a file system for as long as it exists: `file_handle.handle_type` and its bytes."""

    type: int
    data: bytes


class Event(NamedTuple):
    """`mask` of FAN_* bits (equal events of a process are merged), the process's id, and which file.

    `file` None: events were lost because the queue was full (FAN_Q_OVERFLOW). With a `name`, `file` is the directory in
    which that entry was made.
    """

    mask: int
    pid: int
    file: FileHandle | None
    name: str = ""


def handle_of(path: str, dir_fd: int = AT_FDCWD) -> FileHandle:
    """The handle of `path`, whose last component is not followed when it is a symbolic link.

    Raises OSError (EOPNOTSUPP: this file system has no handles).
    """
    buffer = ctypes.create_string_buffer(_HANDLE.size + _MAX_HANDLE_SZ)
    mount_id = ctypes.c_int()
    # AT_HANDLE_FID gives handles that identify, though they could not be opened: what fanotify reports. Older kernels
    # do not know the flag (EINVAL).
    for flags in (AT_HANDLE_FID, 0):
        _HANDLE.pack_into(buffer, 0, _MAX_HANDLE_SZ, 0)
        if libc.name_to_handle_at(dir_fd, os.fsencode(path), buffer, ctypes.byref(mount_id), flags) == 0:
            length, kind = _HANDLE.unpack_from(buffer, 0)
            return FileHandle(kind, buffer.raw[_HANDLE.size : _HANDLE.size + length])
        if ctypes.get_errno() != errno.EINVAL:
            break
    raise oserror("name_to_handle_at", path)


class Group:
    """A fanotify group with the file system's handles in its events. A context manager.

    Raises OSError: EPERM without CAP_SYS_ADMIN (events would lack the pid), EINVAL before FAN_REPORT_FID, ENOSYS.
    """

    def __init__(self, report: int = FAN_REPORT_FID) -> None:
        """`report`: FAN_REPORT_FID tells the file itself, FAN_REPORT_DFID_NAME a directory and the entry's name."""
        flags = FAN_CLASS_NOTIF | report | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS | FAN_CLOEXEC | FAN_NONBLOCK
        self.fd: int = libc.fanotify_init(flags, os.O_RDONLY)
        if self.fd < 0:
            raise oserror("fanotify_init")

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def mark(self, path: str, mask: int, dir_fd: int = AT_FDCWD) -> None:
        """Watch the inode of `path` (a final symbolic link itself, not its target). Raises OSError (ENODEV, EXDEV,
        EOPNOTSUPP: this file system cannot name its files in events)."""
        self._mark(FAN_MARK_ADD, path, mask, dir_fd)

    def unmark(self, path: str, mask: int, dir_fd: int = AT_FDCWD) -> None:
        """Take `mask` off the inode of `path` again. Raises OSError."""
        self._mark(FAN_MARK_REMOVE, path, mask, dir_fd)

    def _mark(self, action: int, path: str, mask: int, dir_fd: int) -> None:
        if libc.fanotify_mark(self.fd, action | FAN_MARK_DONT_FOLLOW, mask, dir_fd, os.fsencode(path)) != 0:
            raise oserror("fanotify_mark", path)

    def events(self) -> Iterator[Event]:
        """What has happened since the last call; does not wait. Raises OSError."""
        while True:
            try:
                data = os.read(self.fd, _READ_SIZE)
            except BlockingIOError:
                return
            if not data:
                return
            yield from parse(data)

    def close(self) -> None:
        """Remove the group and its marks. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def parse(data: bytes) -> Iterator[Event]:
    """The events in what a group's descriptor gave."""
    start = 0
    while start + _METADATA.size <= len(data):
        length, _, _, metadata_length, mask, _, pid = _METADATA.unpack_from(data, start)
        file, name = None, b""
        at, end = start + metadata_length, start + length
        while at + _FID.size <= end:
            kind, info_length, _, handle_length, handle_type = _FID.unpack_from(data, at)
            if kind in (FAN_EVENT_INFO_TYPE_FID, FAN_EVENT_INFO_TYPE_DFID_NAME):
                handle_end = at + _FID.size + handle_length
                file = FileHandle(handle_type, data[at + _FID.size : handle_end])
                if kind == FAN_EVENT_INFO_TYPE_DFID_NAME:
                    name = data[handle_end : at + info_length].partition(b"\0")[0]
            if info_length == 0:
                break
            at += info_length
        if file is not None or mask & FAN_Q_OVERFLOW:
            yield Event(mask, pid, file, os.fsdecode(name))
        if length < _METADATA.size:
            return
        start = end
