"""The listener, on calls that a real gate makes."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler.kernel import gate
from profiler.kernel.bpf import AUDIT_ARCH_X86_64, Rule, assemble
from profiler.kernel.notify import Listener, Notification, notification_sizes
from profiler.kernel.steer import Steered, TraceeEndedError

pytestmark = pytest.mark.kernel

NR_GETPID, NR_GETPPID, NR_NANOSLEEP = 39, 110, 35


@pytest.fixture
def held(tmp_path: Path, wait_until: Callable[..., Any]) -> Iterator[tuple[Steered, Listener]]:
    """A gate whose getppid(2) and nanosleep(2) are notified."""
    program = tmp_path / "gate"
    program.write_bytes(gate.gate_elf())
    program.chmod(0o755)
    process = subprocess.Popen([str(program)])
    try:
        wait_until(lambda: gate.is_at_gate(process.pid))
        steered = Steered.seize(process.pid)
        listener = Listener(steered.install_filter(assemble([Rule(NR_GETPPID), Rule(NR_NANOSLEEP)])))
        with listener:
            yield steered, listener
            steered.kill()
    finally:
        process.kill()
        process.wait()


class Answering:
    """A thread that receives one notification and answers it."""

    def __init__(self, listener: Listener, answer: Callable[[Notification], object]) -> None:
        self.received: Notification | None = None
        self._listener, self._answer = listener, answer
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        ready, over = self._listener.wait(10_000)
        assert ready
        assert not over
        self.received = self._listener.receive()
        assert self.received is not None
        self._answer(self.received)

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()


def test_a_call_goes_on_as_if_it_had_not_been_stopped(held: tuple[Steered, Listener]) -> None:
    steered, listener = held
    with Answering(listener, lambda n: listener.go_on(n.id)) as answering:
        assert steered.syscall(NR_GETPPID, 11, 22, 33, 44, 55, (1 << 64) - 1) == os.getpid()
    got = answering.received
    assert got is not None
    assert (got.pid, got.number, got.arch) == (steered.pid, NR_GETPPID, AUDIT_ARCH_X86_64)
    assert got.args == (11, 22, 33, 44, 55, (1 << 64) - 1)
    assert got.instruction_pointer == gate.SYSCALL_ADDRESS + 2
    assert steered.syscall(NR_GETPID) == steered.pid, "a call without a rule is not notified"


def test_a_call_can_be_refused(held: tuple[Steered, Listener]) -> None:
    steered, listener = held
    with Answering(listener, lambda n: listener.refuse(n.id, errno.EXDEV)):
        assert steered.syscall(NR_GETPPID) == -errno.EXDEV


def test_a_task_that_dies_while_it_waits_is_no_error(held: tuple[Steered, Listener]) -> None:
    steered, listener = held

    def die(notification: Notification) -> None:
        assert listener.valid(notification.id)
        os.kill(notification.pid, 9)

    with Answering(listener, die) as answering, pytest.raises(TraceeEndedError):
        steered.syscall(NR_GETPPID)
    assert answering.received is not None
    assert not listener.valid(answering.received.id)
    assert not listener.go_on(answering.received.id)
    assert not listener.refuse(answering.received.id, errno.EPERM)


def test_the_end_of_the_last_task_is_told(held: tuple[Steered, Listener], wait_until: Callable[..., Any]) -> None:
    steered, listener = held
    assert listener.wait(0) == (False, False)
    steered.kill()
    os.waitpid(steered.pid, 0)
    assert wait_until(lambda: listener.wait(100)[1])


def test_another_descriptor_wakes_the_wait(held: tuple[Steered, Listener]) -> None:
    _, listener = held
    wake = os.eventfd(1, os.EFD_CLOEXEC)
    try:
        listener.wake_on(wake)
        assert listener.wait(10_000) == (False, False)
    finally:
        os.close(wake)


def test_sizes_and_closing(held: tuple[Steered, Listener]) -> None:
    steered, listener = held
    size, answer = notification_sizes()
    assert size >= 80
    assert answer >= 24
    assert not select.select([listener.fd], [], [], 0)[0]
    listener.close()
    listener.close()
    assert listener.fd == -1
    assert steered.syscall(NR_GETPPID) == -errno.ENOSYS, "seccomp_notify_release answers who waits"
