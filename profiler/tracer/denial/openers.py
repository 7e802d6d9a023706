"""Calls whose refusal is not in their result, or cannot be mended by making them again: they run with all that is held.

The kernel remembers who opened something, and asks that one's credentials later: a netlink socket (its answer is a
message), a file below /proc or /sys (`file_ns_capable`), an io_uring (whose workers ask on their own), a user namespace
(whether its maker had SETFCAP). What such a call asks for is taken as the traced run with every privilege takes it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

from profiler.catalogue.calls import number_of
from profiler.kernel.overseer import Call
from profiler.tracer.decode.values import AT_FDCWD, Tracee, signed

AF_NETLINK: Final = 16  # linux/socket.h
CLONE_NEWUSER: Final = 0x10000000  # linux/sched.h
O_ACCMODE: Final = 3  # asm-generic/fcntl.h
SECCOMP_SET_MODE_STRICT, SECCOMP_SET_MODE_FILTER = 0, 1  # linux/seccomp.h
PR_SET_SECCOMP: Final = 22  # linux/prctl.h
_TREES: Final = ("/proc/", "/sys/")


@functools.cache
def _numbers(*names: str) -> frozenset[int]:
    return frozenset(number for name in names if (number := number_of(name)) is not None)


_SOCKET = _numbers("socket")
_SENDS = _numbers("sendto", "sendmsg", "sendmmsg", "write", "writev")
_URING = _numbers("io_uring_setup", "io_uring_enter", "io_uring_register")
_OPEN, _OPENAT, _OPENAT2 = _numbers("open"), _numbers("openat"), _numbers("openat2")
_CLONE, _CLONE3 = _numbers("clone", "unshare"), _numbers("clone3")
_SECCOMP, _PRCTL = _numbers("seccomp"), _numbers("prctl")
_SPECIAL = _SOCKET | _SENDS | _URING | _OPEN | _OPENAT | _OPENAT2 | _CLONE | _CLONE3 | _SECCOMP | _PRCTL


def confines(call: Call) -> bool:
    """Whether the call gives the task a seccomp filter of its own, which may refuse it a capset of ours, or kill it for
    one. It gets all back before that, and keeps it."""
    if call.number in _SECCOMP:
        return call.args[0] in (SECCOMP_SET_MODE_STRICT, SECCOMP_SET_MODE_FILTER)
    return call.number in _PRCTL and call.args[0] == PR_SET_SECCOMP


class Openers:
    """Remembers the workload's netlink sockets."""

    def __init__(self) -> None:
        self._netlink: set[str] = set()

    def opened(self, task: int, call: Call, result: int) -> None:
        """A call that succeeded: it may have made a netlink socket."""
        if call.number in _SOCKET and call.args[0] == AF_NETLINK:
            link = Tracee(task).fd(result)
            if link is not None:
                self._netlink.add(link)

    def asks(self, task: int, call: Call) -> bool:
        """Whether `call`, which `task` is about to make, needs all that the task would have."""
        number, args = call.number, call.args
        if number not in _SPECIAL:
            return False
        if number in _SENDS:
            return bool(self._netlink) and Tracee(task).fd(signed(args[0])) in self._netlink
        if number in _SOCKET:
            return args[0] == AF_NETLINK
        if number in _CLONE:
            return bool(args[0] & CLONE_NEWUSER)
        if number in _CLONE3:
            return bool((Tracee(task).number(args[0], 8) or 0) & CLONE_NEWUSER)
        if number in _URING:
            return True
        return confines(call) or self._writes_below_proc(task, number, args)

    def _writes_below_proc(self, task: int, number: int, args: Sequence[int]) -> bool:
        tracee = Tracee(task)
        if number in _OPEN:
            path, directory, flags = args[0], AT_FDCWD, args[1]
        elif number in _OPENAT:
            path, directory, flags = args[1], signed(args[0]), args[2]
        elif number in _OPENAT2:
            path, directory, flags = args[1], signed(args[0]), tracee.number(args[2], 8) or 0
        else:
            return False
        return bool(flags & O_ACCMODE) and (tracee.path(path, directory) or "").startswith(_TREES)
