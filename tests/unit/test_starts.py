"""What a container's start shows: from whom its tasks descend, and which calls are made under the filter."""

from __future__ import annotations

import os

from profiler.witness.events import Exec, Fork
from profiler.witness.filter import numbers
from profiler.witness.recording import Entered, Left, Recorded
from profiler.witness.starts import after_filter, origin, threads_of

DAEMON, RUNTIME, INIT, THREAD, GATE = 10, 20, 30, 31, 32
NR = numbers("x86_64")


class Start:
    """Events one nanosecond apart."""

    def __init__(self) -> None:
        self.events: list[Recorded] = []

    def calls(self, pid: int, *names: str, args: tuple[int, int, int] = (0, 0, 0), result: int = 0) -> Start:
        for name in names:
            self.events.append(Entered(self.now, pid, NR[name], args))
            self.events.append(Left(self.now, pid, NR[name], result))
        return self

    def forks(self, pid: int, child: int, thread: bool | None = False) -> Start:
        self.events.append(Fork(self.now, pid, child, thread))
        return self

    def execs(self, pid: int, name: str = "gate", old: int = 0) -> Start:
        self.events.append(Exec(self.now, pid, old or pid, name))
        return self

    @property
    def now(self) -> int:
        return len(self.events)

    def seen(self, init: int = INIT, gate: int = INIT) -> set[str] | None:
        found = after_filter(self.events, init, gate)
        names = {number: name for name, number in NR.items()}
        return None if found is None else {names[number] for number in found}


def started() -> Start:
    """A runtime's init process that has asked what the kernel knows of filters, and loaded one."""
    start = Start().forks(RUNTIME, INIT).execs(INIT, "runtime").calls(INIT, "mount", "pivot_root")
    start.forks(INIT, THREAD, thread=True).calls(INIT, "seccomp", args=(2, 0, 0))
    start.calls(INIT, "seccomp", args=(1, 1, 0), result=-14).calls(INIT, "openat")
    return start.calls(INIT, "seccomp", args=(1, 1, 0x1000))


def test_the_calls_between_filter_and_program():
    start = started().calls(INIT, "capset", "setuid").calls(THREAD, "futex").calls(RUNTIME, "waitid")
    start.calls(INIT, "execve").execs(INIT).calls(INIT, "pause")
    assert start.seen() == {"capset", "setuid", "futex", "execve"}


def test_a_filter_loaded_by_prctl_counts_and_other_prctl_do_not():
    start = Start().calls(INIT, "prctl", args=(38, 1, 0)).calls(INIT, "getpid").calls(INIT, "prctl", args=(22, 2, 1))
    assert start.calls(INIT, "chdir").execs(INIT).seen() == {"chdir"}


def test_an_init_of_the_engine_is_watched_to_its_end():
    start = started().calls(INIT, "chdir").execs(INIT, "docker-init").calls(INIT, "rt_sigprocmask")
    start.forks(INIT, GATE).calls(GATE, "setpgid", "execve").execs(GATE).calls(GATE, "pause")
    start.calls(INIT, "wait4", "exit_group")
    seen = start.seen(INIT, GATE)
    assert seen == {"chdir", "rt_sigprocmask", "setpgid", "execve", "wait4", "exit_group"}


def test_a_thread_that_executes_takes_the_number_of_the_first():
    start = started().calls(THREAD, "capset", "execve").execs(INIT, old=THREAD).calls(INIT, "pause")
    assert start.seen() == {"capset", "execve"}


def test_what_was_not_seen_is_none():
    assert Start().calls(INIT, "chdir").execs(INIT).seen() is None  # no filter
    assert started().calls(INIT, "chdir").seen() is None  # no gate
    assert Start().seen() is None


def test_the_origin_was_there_before():
    births = Start().forks(DAEMON, 11).forks(11, RUNTIME).forks(7, 8).forks(RUNTIME, INIT).events
    assert origin(births, INIT) == DAEMON
    assert origin(births, 99) == 99
    assert origin([Fork(0, 1, 2, False), Fork(1, 2, 1, False)], 1) in (1, 2)  # numbers are used again


def test_threads_of_a_process():
    assert os.getpid() in threads_of(os.getpid())
    assert threads_of(2**22 + 1) == ()
