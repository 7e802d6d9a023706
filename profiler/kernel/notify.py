"""The seccomp listener: receives notified calls, tells whether one is still waiting, lets it go on.

`struct seccomp_notif` and its ioctls are described in seccomp_unotify(2). Nothing here knows what a call means.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
from typing import Final, NamedTuple

from profiler.kernel.namespaces import libc, oserror

# linux/seccomp.h; the numbers encode the direction, the size of struct, the letter '!' and a number.
SECCOMP_GET_NOTIF_SIZES: Final = 3
SECCOMP_IOCTL_NOTIF_RECV: Final = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND: Final = 0xC0182101
SECCOMP_IOCTL_NOTIF_ID_VALID: Final = 0x40082102
SECCOMP_IOCTL_NOTIF_SET_FLAGS: Final = 0x40082104
SECCOMP_USER_NOTIF_FLAG_CONTINUE: Final = 1
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: Final = 1
_SYS_SECCOMP: Final = 317  # asm/unistd_64.h

# struct seccomp_notif: id, pid, flags, then struct seccomp_data: nr, arch, instruction_pointer, args[6]
_NOTIF = struct.Struct("=QIIiIQ6Q")
# struct seccomp_notif_resp: id, val, error, flags
_RESP = struct.Struct("=QqiI")
_ID = struct.Struct("=Q")
_INTERRUPTED = (errno.EINTR, errno.EAGAIN)


class Notification(NamedTuple):
    """One call that waits for an answer. `pid` is the calling thread's id as this process numbers it.

    `arch` is an AUDIT_ARCH_* value, `args` are the six registers as unsigned 64-bit numbers.
    """

    id: int
    pid: int
    number: int
    arch: int
    args: tuple[int, int, int, int, int, int]
    instruction_pointer: int


class _Sizes(ctypes.Structure):
    """`struct seccomp_notif_sizes`."""

    _fields_ = (
        ("seccomp_notif", ctypes.c_uint16),
        ("seccomp_notif_resp", ctypes.c_uint16),
        ("seccomp_data", ctypes.c_uint16),
    )


def notification_sizes() -> tuple[int, int]:
    """The sizes in bytes of this kernel's `seccomp_notif` and `seccomp_notif_resp`, which may grow.

    Raises OSError (ENOSYS, EINVAL) where the kernel has no user notification (before SECCOMP_GET_NOTIF_SIZES).
    """
    sizes = _Sizes()
    if libc.syscall(_SYS_SECCOMP, SECCOMP_GET_NOTIF_SIZES, 0, ctypes.addressof(sizes)) != 0:
        raise oserror("seccomp(SECCOMP_GET_NOTIF_SIZES)")
    return int(sizes.seccomp_notif), int(sizes.seccomp_notif_resp)


class Listener:
    """The receiving end of one or more filters' RET_USER_NOTIF. Owns `fd`; one thread at a time receives.

    Buffers are made once: a stop's cost is what a traced workload feels.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        size, answer_size = notification_sizes()
        self._buffer = bytearray(max(size, _NOTIF.size))
        self._empty = bytes(len(self._buffer))
        self._answer = bytearray(max(answer_size, _RESP.size))
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        # SYNC_WAKE_UP: hand the CPU over directly, since the one waits for the other. The kernel may not know it.
        self.synchronous = False
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
            self.synchronous = True

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wake_on(self, fd: int) -> None:
        """Let `wait` return when `fd` becomes readable too (an eventfd or pipe by which another thread calls)."""
        self._poll.register(fd, select.POLLIN)

    def wait(self, milliseconds: int) -> tuple[bool, bool]:
        """Wait for a notification. Returns whether one is there, and whether nobody is left who could send one.

        The latter is POLLHUP: the last task with the filter has been reaped (kernel/seccomp.c, seccomp_notify_poll).
        Both are False when the time is up or a descriptor of `wake_on` has become readable.
        """
        for fd, events in self._poll.poll(milliseconds):
            if fd == self.fd:
                return bool(events & select.POLLIN), bool(events & (select.POLLHUP | select.POLLERR | select.POLLNVAL))
        return False, False

    def receive(self) -> Notification | None:
        """The next notification, waiting for it; None when its task died meanwhile (ENOENT) or a signal came."""
        self._buffer[:] = self._empty  # the kernel refuses a buffer that is not zero
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_RECV, self._buffer, True)
        except OSError as error:
            if error.errno == errno.ENOENT or error.errno in _INTERRUPTED:
                return None
            raise
        identifier, pid, _, number, arch, pointer, *args = _NOTIF.unpack_from(self._buffer)
        return Notification(identifier, pid, number, arch, tuple(args), pointer)

    def valid(self, identifier: int) -> bool:
        """Whether that call still waits, so that its pid still names the caller and its memory is what was read."""
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_ID_VALID, _ID.pack(identifier))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def go_on(self, identifier: int) -> bool:
        """Let the call run as if it had not been stopped. False when nobody waits for it any more (ENOENT)."""
        return self._send(identifier, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE)

    def refuse(self, identifier: int, error: int) -> bool:
        """Answer the call with `-error` instead of running it. False when nobody waits for it any more."""
        return self._send(identifier, -error, 0)

    def _send(self, identifier: int, error: int, flags: int) -> bool:
        _RESP.pack_into(self._answer, 0, identifier, 0, error, flags)
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_SEND, self._answer, True)
        except OSError as failure:
            if failure.errno == errno.ENOENT:
                return False
            raise
        return True

    def close(self) -> None:
        """Close the listener. Whoever waits for an answer, and every later notified call, gets ENOSYS. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
