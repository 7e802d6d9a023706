"""The seccomp filters of a process: read another's, install one for this thread, ask which actions the kernel knows."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor

from profiler.errors import HostError

# linux/ptrace.h
PTRACE_DETACH = 17
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_SECCOMP_GET_FILTER = 0x420C
PTRACE_EVENT_STOP = 128
_WALL = 0x40000000  # linux/wait.h: threads that are not children of ours, too

# linux/seccomp.h, linux/prctl.h, asm/unistd_64.h
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_GET_ACTION_AVAIL = 2
PR_SET_NO_NEW_PRIVS = 38
_NR_SECCOMP = 317

_SOCK_FILTER_SIZE = 8
_STOP_SECONDS = 5.0  # a process in an uninterruptible sleep does not stop; give up on it


class SockFprog(ctypes.Structure):
    """`struct sock_fprog` (linux/filter.h)."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.syscall.restype = ctypes.c_long


def _oserror(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def _ptrace(request: int, pid: int, addr: int = 0, data: object = None) -> int:
    result: int = _libc.ptrace(request, pid, addr, data)
    if result < 0:
        raise _oserror("ptrace")
    return result


def filters_of(pid: int) -> tuple[bytes, ...]:
    """Every seccomp filter of `pid`, the oldest first, each an array of `struct sock_filter`; empty without any.

    (ptrace(2) says that index 0 is the newest; get_nth_filter in kernel/seccomp.c counts from the oldest.)
    The kernel answers only a tracer with CAP_SYS_ADMIN that is not confined by seccomp itself (seccomp_get_filter). The
    process is stopped for a moment as by PTRACE_INTERRUPT and goes on with whatever signal it was about to receive; the
    few calls that no signal restarts (signal(7)) may fail with EINTR in it, as after SIGSTOP and SIGCONT. Raises
    HostError when it may not be read, is traced by another, has ended, or does not stop within five seconds.
    """
    # A thread of its own: whatever happens, its end detaches the process (kernel/ptrace.c, exit_ptrace).
    with ThreadPoolExecutor(1, thread_name_prefix="filters") as executor:
        try:
            return executor.submit(_read_filters, pid).result()
        except ProcessLookupError as error:
            raise HostError(f"process {pid} has ended", "its seccomp filter can be read while it runs only") from error
        except PermissionError as error:
            raise HostError(
                f"the seccomp filter of process {pid} may not be read: {error.strerror}",
                "run as root with CAP_SYS_ADMIN and CAP_SYS_PTRACE, outside any seccomp filter, and with no other "
                "tracer on that process",
            ) from error
        except OSError as error:
            hint = "the process's filter was not made from classic BPF" if error.errno == errno.EMEDIUMTYPE else ""
            raise HostError(f"the seccomp filter of process {pid} cannot be read: {error.strerror}", hint) from error


def _read_filters(pid: int) -> tuple[bytes, ...]:
    _ptrace(PTRACE_SEIZE, pid)
    _ptrace(PTRACE_INTERRUPT, pid)
    pending = _wait_for_stop(pid)
    try:
        filters: list[bytes] = []
        while (program := _filter(pid, len(filters))) is not None:
            filters.append(program)
        return tuple(filters)
    finally:
        with contextlib.suppress(ProcessLookupError):  # killed in the meantime
            _ptrace(PTRACE_DETACH, pid, 0, pending)


def _wait_for_stop(pid: int) -> int:
    """Wait until `pid` stops; return the signal that it was about to receive, which detaching has to pass on."""
    deadline = time.monotonic() + _STOP_SECONDS
    while True:
        # WNOWAIT: when it ends just now, its exit status still belongs to whoever waits for it.
        info = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG | _WALL)
        if info is None:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "it does not stop")
            time.sleep(0.0005)
            continue
        if info.si_code not in {os.CLD_TRAPPED, os.CLD_STOPPED}:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        # PTRACE_EVENT_STOP is our interruption or a group-stop: neither is a signal to deliver.
        return 0 if info.si_status >> 8 == PTRACE_EVENT_STOP else info.si_status & 0x7F


def _filter(pid: int, index: int) -> bytes | None:
    try:
        count = _ptrace(PTRACE_SECCOMP_GET_FILTER, pid, index)
    except OSError as error:
        # EINVAL: no filter at all (get_nth_filter looks at the mode first). ENOENT: no more.
        if error.errno in {errno.EINVAL, errno.ENOENT}:
            return None
        raise
    buffer = ctypes.create_string_buffer(count * _SOCK_FILTER_SIZE)
    _ptrace(PTRACE_SECCOMP_GET_FILTER, pid, index, buffer)
    return buffer.raw


def install(program: bytes, *, no_new_privs: bool = False) -> None:
    """Confine this thread and its future children by `program`, an array of `struct sock_filter` (seccomp(2)).

    Needs CAP_SYS_ADMIN or no_new_privs, which `no_new_privs` sets first. Raises OSError: EINVAL for a program that
    seccomp does not allow, EACCES without either right.
    """
    if no_new_privs and _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0:
        raise _oserror("prctl")
    fprog = SockFprog(len(program) // _SOCK_FILTER_SIZE, program)
    if _libc.syscall(ctypes.c_long(_NR_SECCOMP), SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(fprog)) < 0:
        raise _oserror("seccomp")


def action_available(action: int) -> bool:
    """Whether this kernel knows a filter's action, one of bpf.RET_* (seccomp(2), SECCOMP_GET_ACTION_AVAIL)."""
    word = ctypes.c_uint32(action)
    return bool(_libc.syscall(ctypes.c_long(_NR_SECCOMP), SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(word)) == 0)
