"""Answers every notified call of one run, on a thread of its own: decode, record, let it go on.

Nothing is refused. What a call tells beyond itself (a node that is made, a device that is mounted, a worker that the
witness must follow) is passed on from here.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from profiler.catalogue.calls import catalogue, number_of
from profiler.catalogue.paths import OPENS_FOR_WRITING
from profiler.errors import ProfilerError
from profiler.kernel.bpf import AUDIT_ARCH_I386
from profiler.kernel.notify import Listener, Notification
from profiler.model import Process
from profiler.tracer.calls import DecodedCall, call_name, decode
from profiler.tracer.decode.values import Tracee
from profiler.tracer.devices import DeviceWatch
from profiler.tracer.ledger import Ledger
from profiler.tracer.process import Callers
from profiler.tracer.rawcalls import RawCalls
from profiler.tracer.system import SystemWrites

TICK_SECONDS: Final = 0.02  # between two looks at devices while calls keep coming
IDLE_MILLISECONDS: Final = 50
PROGRESS_SECONDS: Final = 1.0
_PROGRAMS_SHOWN: Final = 4  # in one note

# linux/mount.h: these change a mount that is there, or show it elsewhere; the source is no device then
_MS_NO_SOURCE: Final = 1 << 5 | 1 << 12 | 1 << 13 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20
_MS_RDONLY: Final = 1
_FSCONFIG_SET_STRING: Final = 1
_SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 8
_CLONE_NEWUSER: Final = 0x10000000
_TRACING: Final = frozenset({0, 16, 0x4206})  # PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_SEIZE

Progress = Callable[[float, int], None]


class Recorder:
    """The listener's thread. Without a listener there is none: then whoever stops the calls calls `answer` and, now and
    then, `look_around`. Calls are answered from `start` on and recorded once `recording` is set.

    `follow` makes the kernel-check witness see a task's workers, which no fork event tells of. `on_progress` gets the
    seconds since the recording began and the number of calls, about once a second. `on_failure` is called on the thread
    when it fails, before it ends.
    """

    def __init__(
        self,
        listener: Listener | None,
        ledger: Ledger,
        raw: RawCalls,
        callers: Callers,
        devices: DeviceWatch,
        system: SystemWrites,
        *,
        follow: Callable[[int], None] | None,
        on_failure: Callable[[], None],
        on_progress: Progress | None = None,
    ) -> None:
        self._listener = listener
        self._ledger = ledger
        self._raw = raw
        self._callers = callers
        self._devices = devices
        self._system = system
        self._follow = follow
        self._on_failure = on_failure
        self._on_progress = on_progress
        self._foreign_numbers = catalogue().foreign_numbers()
        self._began = 0.0
        self._next_progress = 0.0
        self._notes: dict[str, dict[str, None]] = {}  # words, and the programs that they are about
        self._aside: dict[str, Callable[[Notification, DecodedCall, Process], None]] = {
            **dict.fromkeys(OPENS_FOR_WRITING, self._open),
            "mknod": self._mknod,
            "mknodat": self._mknod,
            "mount": self._mount,
            "fsconfig": self._fsconfig,
            "swapon": self._swapon,
            "io_uring_setup": self._io_uring,
            "seccomp": self._seccomp,
            "ptrace": self._ptrace,
        }
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)
        self.recording = False
        self.i386: dict[str, str] = {}  # calls by the table of 32-bit programs: the program that made each first
        self._i386_counts: Counter[tuple[int, int]] = Counter()  # by task and number
        self.failure: BaseException | None = None
        if listener is not None:
            listener.wake_on(self._wake)
            if devices.fd is not None:
                listener.wake_on(devices.fd)

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts about the workload that are worth a line, each with the programs that it holds for."""
        return tuple(f"{words} {_listed(programs)}" for words, programs in self._notes.items())

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def record(self) -> None:
        """Record what is answered from now on."""
        self._began = time.monotonic()
        self._next_progress = self._began + PROGRESS_SECONDS
        self.recording = True

    def wait(self, seconds: float | None) -> bool:
        """Wait until the last task with the filter is gone, or the thread has failed. False when the time is up."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End the thread, whoever may still be waiting for an answer, and close the listener. Idempotent."""
        if self._wake < 0:
            return
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join()
        wake, self._wake = self._wake, -1
        os.close(wake)
        if self._listener is not None:
            self._listener.close()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._answer_all()
        except BaseException as error:  # handed on to whoever waits for the run
            self.failure = error
            with contextlib.suppress(Exception):  # the first failure is the one to tell
                self._on_failure()

    def _answer_all(self) -> None:
        listener, next_look = self._listener, 0.0
        assert listener is not None
        while True:
            ready, over = listener.wait(IDLE_MILLISECONDS)
            if ready:
                notification = listener.receive()
                if notification is not None:
                    self.answer(notification)
                if time.monotonic() < next_look:
                    continue
            if self._is_stopped() or (over and not ready):
                return
            self.look_around()
            next_look = time.monotonic() + TICK_SECONDS

    def _is_stopped(self) -> bool:
        try:
            return os.eventfd_read(self._wake) > 0
        except BlockingIOError:
            return False

    def look_around(self) -> None:
        """See which devices were used, and tell how far the run is."""
        self._devices.drain()
        if self._on_progress is not None and self.recording and time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + PROGRESS_SECONDS
            self._on_progress(time.monotonic() - self._began, self._raw.total)

    def answer(self, notification: Notification) -> None:
        """Record a call and let it go on. Without a listener nobody waits: the caller has stopped it."""
        if not self.recording:
            self._go_on(notification)
            return
        now = time.monotonic_ns()
        pid = notification.pid
        process = self._callers.of(pid)
        if notification.arch == AUDIT_ARCH_I386 and self._is_counted_only(notification, process):
            self._go_on(notification)
            return
        call = decode(notification, pid)
        # A pid of a thread that was killed meanwhile may be another's by now: then nothing that was read is its.
        if process.exe or self._is_valid(notification):
            aside = self._aside.get(call.name)
            if aside is not None:
                aside(notification, call, process)
            number: int | None = notification.number
            if notification.arch == AUDIT_ARCH_I386:
                self._note("32-bit system calls, whose arguments are mostly not decoded, are made by", process)
                number = number_of(call.name)  # an engine's filter is asked by x86-64 numbers
            self._ledger.call(pid, now, call.name, call.args, call.path, process)
            if number is not None:
                self._raw.call(pid, call, number, notification.args, time_ns=now, process=process)
        self._go_on(notification)
        self._callers.after(pid, call.name)

    def _go_on(self, notification: Notification) -> None:
        if self._listener is not None:
            self._listener.go_on(notification.id)

    def _is_valid(self, notification: Notification) -> bool:
        return self._listener is None or self._listener.valid(notification.id)

    def i386_calls(self, pid: int, number: int) -> int:
        """How many calls of this number the task `pid` has made by the table of 32-bit programs. From any thread."""
        return self._i386_counts[pid, number]

    def _is_counted_only(self, notification: Notification, process: Process) -> bool:
        """Count a 32-bit call before it goes on; whether it is notified for that alone."""
        self._i386_counts[notification.pid, notification.number] += 1
        self.i386.setdefault(call_name(notification.number, notification.arch), process.exe)
        return notification.number not in self._foreign_numbers

    def _note(self, words: str, process: Process) -> None:
        self._notes.setdefault(words, {}).setdefault(process.exe or "a program that was not seen")

    # -- what calls tell beyond themselves ---------------------------------------------------------------------------

    def _open(self, notification: Notification, call: DecodedCall, _: Process) -> None:
        if call.path is not None:
            self._system.opening(notification.pid, call.path)

    def _mknod(self, notification: Notification, call: DecodedCall, process: Process) -> None:
        mode, device = notification.args[1:3] if call.name == "mknod" else notification.args[2:4]
        if call.path is not None:
            # the kernel reads the device number as an unsigned int (SYSCALL_DEFINE3(mknod) in fs/namei.c)
            self._devices.made(notification.pid, call.path, mode & 0xFFFF, device & 0xFFFFFFFF, process)

    def _mount(self, notification: Notification, call: DecodedCall, process: Process) -> None:
        source, _, kind, flags = notification.args[:4]
        if flags & _MS_NO_SOURCE:
            return
        tracee = Tracee(notification.pid)
        if call.path is not None and tracee.string(kind) == "devtmpfs":
            self._devices.mounting(notification.pid, call.path)
        self._mounted(notification.pid, tracee.string(source), process, read_only=bool(flags & _MS_RDONLY))

    def _fsconfig(self, notification: Notification, _: DecodedCall, process: Process) -> None:
        command, key, value = notification.args[1:4]
        tracee = Tracee(notification.pid)
        if command & 0xFFFFFFFF == _FSCONFIG_SET_STRING and tracee.string(key) == "source":
            self._mounted(notification.pid, tracee.string(value), process, read_only=False)

    def _swapon(self, notification: Notification, call: DecodedCall, process: Process) -> None:
        self._mounted(notification.pid, call.path, process, read_only=False)

    def _mounted(self, pid: int, source: str | None, process: Process, *, read_only: bool) -> None:
        if source is not None and source.startswith("/"):
            self._devices.mounted(pid, source, read_only=read_only, process=process)

    def _io_uring(self, notification: Notification, _: DecodedCall, process: Process) -> None:
        """io_uring's workers are threads that `event-fork` misses (kernel/fork.c, create_io_thread)."""
        if self._follow is not None:
            with contextlib.suppress(ProfilerError):  # gone
                self._follow(notification.pid)

    def _seccomp(self, notification: Notification, _: DecodedCall, process: Process) -> None:
        if notification.args[1] & _SECCOMP_FILTER_FLAG_NEW_LISTENER:
            # kernel/seccomp.c, has_duplicate_listener: EBUSY, only one listener in all of a task's filters
            self._note("a seccomp listener of its own, which nobody can have while traced, is asked for by", process)

    def _ptrace(self, notification: Notification, _: DecodedCall, process: Process) -> None:
        if notification.args[0] in _TRACING:
            self._note("other processes are traced by", process)


def _listed(programs: Iterable[str]) -> str:
    names = list(programs)
    return ", ".join(names[:_PROGRAMS_SHOWN]) + (" …" if len(names) > _PROGRAMS_SHOWN else "")
