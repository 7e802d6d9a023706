"""Filters in real processes: the kernel accepts what we assemble, decides as we interpret, and gives it back."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pace import SLOWER

from profiler.errors import HostError
from profiler.kernel import bpf
from profiler.kernel.bpf import Compare, Rule, assemble
from profiler.kernel.filters import action_available, filters_of, install

pytestmark = pytest.mark.kernel

GETPPID, GETPRIORITY = 110, 140  # two calls that nothing in Python's shutdown needs
DENIED = bpf.RET_ERRNO | errno.EXDEV
FILTER = assemble([Rule(GETPPID), Rule(GETPRIORITY, ((Compare(1, "eq", 7),),))], action=DENIED)


@contextmanager
def child(prepare: Callable[[], object]) -> Iterator[int]:
    """A forked child that has run `prepare` and pauses."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            prepare()
            os.write(write, b"1")
            signal.pause()
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    try:
        assert os.read(read, 1) == b"1"
        yield pid
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def exit_code_of(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def errno_of(number: int, *args: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, args)) < 0 else 0


def wait_for_state(pid: int, states: str) -> None:
    deadline = time.monotonic() + 10 * SLOWER
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in states:
        assert time.monotonic() < deadline
        os.sched_yield()


def test_the_kernel_decides_as_the_interpreter():
    def work() -> int:
        install(FILTER)
        for number, args in (
            (GETPPID, ()),
            (GETPRIORITY, (0, 0)),
            (GETPRIORITY, (0, 7)),
            (GETPRIORITY, (0, 7 | 1 << 32)),
        ):
            answer = bpf.interpret(FILTER, number, args)
            expected = {bpf.RET_ALLOW: 0, DENIED: errno.EXDEV}[answer]
            seen = errno_of(number, *args)
            if seen != expected and not (expected == 0 and seen == errno.ESRCH):  # nobody has that pid
                return 1
        return 0

    assert exit_code_of(work) == 0


def test_the_kernel_accepts_a_big_filter_with_long_jumps():
    rules = [Rule(number, tuple((Compare(1, "ne", n, 0xFF << 30),) for n in range(20))) for number in range(300, 320)]
    big = assemble([*rules, Rule(GETPPID)], action=DENIED, foreign_numbers=frozenset(range(0, 400, 7)))
    assert len(big) > 8 * 2000

    def work() -> int:
        install(big)
        return 0 if errno_of(GETPPID) == errno.EXDEV else 1

    assert exit_code_of(work) == 0


def test_a_filter_installs_without_privilege_but_with_no_new_privs():
    def work() -> int:
        os.setresuid(65534, 65534, 65534)
        try:
            install(FILTER)
        except PermissionError:
            install(FILTER, no_new_privs=True)
            return 0 if errno_of(GETPPID) == errno.EXDEV else 1
        return 2

    assert exit_code_of(work) == 0


def test_what_the_kernel_refuses_is_an_oserror():
    with pytest.raises(OSError, match="Invalid argument"):
        install(b"\xff" * 8)


def test_filters_are_read_oldest_first_and_the_process_goes_on():
    other = assemble([Rule(GETPRIORITY)], action=DENIED)
    with child(lambda: (install(FILTER), install(other))) as pid:
        assert filters_of(pid) == (FILTER, other)
        assert filters_of(pid) == (FILTER, other)  # it was let go: it can be seized again
        wait_for_state(pid, "S")
        assert "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text()


def test_a_process_without_a_filter_has_none():
    with child(lambda: None) as pid:
        assert filters_of(pid) == ()


def test_a_stopped_process_stays_stopped():
    with child(lambda: install(FILTER)) as pid:
        os.kill(pid, signal.SIGSTOP)
        wait_for_state(pid, "T")
        assert filters_of(pid) == (FILTER,)
        wait_for_state(pid, "T")


def test_a_pending_signal_is_delivered_after_reading():
    def prepare() -> None:
        install(FILTER)
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(42))

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        prepare()
        os.write(write, b"1")
        while True:
            signal.pause()
    os.close(write)
    assert os.read(read, 1) == b"1"
    os.close(read)
    os.kill(pid, signal.SIGSTOP)
    wait_for_state(pid, "T")
    os.kill(pid, signal.SIGUSR1)  # pending until SIGCONT
    os.kill(pid, signal.SIGCONT)
    with contextlib.suppress(HostError):  # it may have ended before it was seized
        assert filters_of(pid) == (FILTER,)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_a_process_that_ended_is_named():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(HostError, match=f"process {pid} has ended"):
        filters_of(pid)


def test_a_confined_reader_is_told_what_it_needs():
    with child(lambda: install(FILTER)) as pid:

        def work() -> int:
            install(FILTER)
            try:
                filters_of(pid)
            except HostError as error:
                return 0 if "CAP_SYS_ADMIN" in error.hint else 1
            return 2

        assert exit_code_of(work) == 0


def test_known_and_unknown_actions():
    assert action_available(bpf.RET_ERRNO)
    assert action_available(bpf.RET_USER_NOTIF)
    assert not action_available(0x12340000)
