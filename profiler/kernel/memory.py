"""Bytes and strings of another process, read without stopping it.

On the path of every notified call, so no file is opened. Addresses are the other process's, as integers.
What is read may change under the reader: nothing here decides anything.
Sources: process_vm_readv(2), mm/process_vm_access.c, proc_pid_mem(5).
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading

from profiler.kernel.namespaces import libc, oserror

PAGE = os.sysconf("SC_PAGE_SIZE")
_IOV_MAX = 1024  # UIO_MAXIOV of linux/uio.h


class _IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_VECTOR = ctypes.POINTER(_IoVec)
for _call in (libc.process_vm_readv, libc.process_vm_writev):
    _call.argtypes = (ctypes.c_int, _VECTOR, ctypes.c_ulong, _VECTOR, ctypes.c_ulong, ctypes.c_ulong)
    _call.restype = ctypes.c_ssize_t


class _Local(threading.local):
    """Made once a thread: a page's buffer and the two vectors of a transfer into it, whose cost every stop feels."""

    def __init__(self) -> None:
        self.buffer = (ctypes.c_char * PAGE)()
        self.start = ctypes.addressof(self.buffer)
        self.here = _IoVec(self.start, PAGE)
        self.there = _IoVec(0, 0)
        self.here_pointer = ctypes.pointer(self.here)
        self.there_pointer = ctypes.pointer(self.there)


_local = _Local()


def _pages(address: int, length: int) -> ctypes.Array[_IoVec]:
    """The range cut at page ends: a transfer is only guaranteed to be partial between elements of the vector."""
    parts: list[_IoVec] = []
    end = address + length
    while address < end and len(parts) < _IOV_MAX:
        part = min(PAGE - address % PAGE, end - address)
        parts.append(_IoVec(address, part))
        address += part
    return (_IoVec * len(parts))(*parts)


def read_bytes(pid: int, address: int, length: int) -> bytes:
    """Up to `length` bytes at `address` of `pid`: fewer where the readable memory ends, none where it does not begin.

    Raises OSError: ProcessLookupError (ESRCH) when the process is gone, PermissionError without ptrace access.
    """
    if length <= 0 or not 0 <= address < 1 << 64:
        return b""
    if address % PAGE + length <= PAGE:
        return _read_within(pid, address, length)
    content = b""
    while len(content) < length:
        wanted = min(length - len(content), (_IOV_MAX - 1) * PAGE)
        part = _read_once(pid, address + len(content), wanted)
        content += part
        if len(part) < wanted:
            break
    return content


def _read_within(pid: int, address: int, length: int) -> bytes:
    """`read_bytes` of a range that does not leave its page."""
    local = _local
    local.here.length = local.there.length = length
    local.there.base = address
    count = libc.process_vm_readv(pid, local.here_pointer, 1, local.there_pointer, 1, 0)
    return ctypes.string_at(local.start, count) if count >= 0 else _unread(pid, address, length)


def _read_once(pid: int, address: int, length: int) -> bytes:
    buffer = (ctypes.c_char * length)()
    local = _IoVec(ctypes.addressof(buffer), length)
    remote = _pages(address, length)
    count = libc.process_vm_readv(pid, ctypes.byref(local), 1, remote, len(remote), 0)
    return buffer.raw[:count] if count >= 0 else _unread(pid, address, length)


def _unread(pid: int, address: int, length: int) -> bytes:
    """What there is to read where process_vm_readv(2) has just failed."""
    number = ctypes.get_errno()
    if number == errno.EFAULT:
        return b""
    if number in (errno.ENOSYS, errno.EPERM):  # a kernel without CONFIG_CROSS_MEMORY_ATTACH, or a filter around us
        return _read_file(pid, address, length)
    raise oserror(f"process_vm_readv({pid})", errno=number)


def _read_file(pid: int, address: int, length: int) -> bytes:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, length, address)
    except OSError as error:
        if error.errno == errno.EIO:  # mem_rw: nothing is mapped there
            return b""
        raise
    finally:
        os.close(fd)


def read_string(pid: int, address: int, limit: int = 4096) -> str | None:
    """The NUL-terminated string at `address`, its first `limit` bytes if it is longer; bytes that are no UTF-8 become
    surrogates, as in file names.

    None for a null pointer and where the memory ends before the string does: the kernel would answer EFAULT there.
    Raises OSError as `read_bytes` does.
    """
    if address == 0:
        return None
    content = b""
    while len(content) < limit:
        here = address + len(content)
        wanted = min(PAGE - here % PAGE, limit - len(content))
        part = read_bytes(pid, here, wanted)
        end = part.find(b"\0")
        if end >= 0:
            return os.fsdecode(content + part[:end])
        content += part
        if len(part) < wanted:
            return None
    return os.fsdecode(content)


def read_u32(pid: int, address: int) -> int:
    """The unsigned 32-bit number at `address`, in the machine's byte order. OSError EFAULT where it is not readable."""
    return _read_number(pid, address, 4)


def read_u64(pid: int, address: int) -> int:
    """The unsigned 64-bit number at `address`, in the machine's byte order. OSError EFAULT where it is not readable."""
    return _read_number(pid, address, 8)


def _read_number(pid: int, address: int, size: int) -> int:
    content = read_bytes(pid, address, size)
    if len(content) < size:
        raise oserror(f"read {size} bytes at {address:#x} of process {pid}", errno=errno.EFAULT)
    return int.from_bytes(content, "little")


def write_bytes(pid: int, address: int, content: bytes) -> None:
    """Put `content` at `address` of `pid`, all of it. The memory must be writable there (the kernel checks).

    Raises OSError: EFAULT where it is not writable, ProcessLookupError, PermissionError as `read_bytes`.
    """
    written = 0
    while written < len(content):
        part = content[written : written + (_IOV_MAX - 1) * PAGE]
        local = _IoVec(ctypes.cast(ctypes.c_char_p(part), ctypes.c_void_p).value, len(part))
        remote = _pages(address + written, len(part))
        count = libc.process_vm_writev(pid, ctypes.byref(local), 1, remote, len(remote), 0)
        if count < 0 and ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
            count = _write_file(pid, address + written, part)
        if count <= 0:
            raise oserror(f"process_vm_writev({pid})", errno=ctypes.get_errno() or errno.EFAULT)
        written += count


def _write_file(pid: int, address: int, content: bytes) -> int:
    fd = os.open(f"/proc/{pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        return os.pwrite(fd, content, address)
    finally:
        os.close(fd)
