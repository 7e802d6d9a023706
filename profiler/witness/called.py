"""`CallWitness`: which system calls a workload makes, each once, with the program that made it first.

Every entry of a system call would be far too many events. So a call is recorded until it has been seen, and from then
on the kernel's own filter of the event leaves it out: after some milliseconds only what is new is recorded. Neither
time nor the number of calls matters then, and nothing is sampled.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from profiler.model import Called
from profiler.witness.events import Exec, Fork
from profiler.witness.filter import names
from profiler.witness.recording import BUFFER_KIB, ENTER, EXEC, NEWTASK, Entered, Recorded, Recording, in_order
from profiler.witness.tracefs import SETTLE_NS

X32_BIT: Final = 0x40000000  # asm/unistd.h, __X32_SYSCALL_BIT
ROUND_SECONDS: Final = 0.05
QUICK_SECONDS: Final = 0.002  # after something new, of which there will be more events in the buffer

ForeignCalls = Callable[[int, int], int]  # of a task and a number: how many


class CallWitness:
    """A context manager over a recording of its own; one thread reads. HostError on entering as `Recording`."""

    def __init__(self, *, buffer_kib: int = BUFFER_KIB) -> None:
        self._foreign_calls: ForeignCalls = lambda pid, number: 0
        self._left_out: Counter[tuple[int, int]] = Counter()  # by task and number
        self._recording = Recording(ENTER, EXEC, NEWTASK, buffer_kib=buffer_kib)
        self._seen: set[int] = set()
        self._carried: list[Recorded] = []  # too young to be put in order
        self._programs: dict[int, str] = {}  # by task: what it executes
        self._callers: dict[int, str] = {}  # by call: the program that made it first
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._recording.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._join()
        self._recording.close()

    def start(self, pid: int, program: str, foreign_calls: ForeignCalls | None = None) -> None:
        """Record from now on what `pid`, which executes `program`, and its descendants call.

        The event has a call's number and does not say of which table it is. `foreign_calls` tells how many calls of a
        number a task was seen to make by another table than x86-64's, before they went on: as many of its events are
        left out, and are no reason to record that number no more.
        """
        self._foreign_calls = foreign_calls or self._foreign_calls
        self._programs[pid] = program
        self._recording.start((pid,))
        self._thread = threading.Thread(target=self._run, name="call-witness", daemon=True)
        self._thread.start()

    def finish(self) -> Called:
        """Record no more. What was called, by name. Raises what the reading thread failed with."""
        self._join()
        if self._failure is not None:
            raise self._failure
        self._take(self._recording.stop(), None)
        known = names("x86_64")
        # Not -1, with which a tracer suppresses a call, nor a number that nobody knows: no profile can name them.
        found = {known[number]: program for number, program in self._callers.items() if number in known}
        foreign = any(number > 0 and number & X32_BIT for number in self._callers)
        return Called(found, self._recording.lost(), foreign)

    def _run(self) -> None:
        try:
            quick = True
            while not self._stop.wait(QUICK_SECONDS if quick else ROUND_SECONDS):
                began = time.monotonic_ns()
                quick = self._take(self._recording.read(), began - SETTLE_NS)
                if quick:
                    self._recording.only(ENTER, " && ".join(f"id != {number}" for number in sorted(self._seen)))
        except BaseException as error:  # handed on to whoever calls finish
            self._failure = error

    def _join(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _take(self, events: list[Recorded], until: int | None) -> bool:
        """Take what was recorded up to `until` (ns; None: all of it). Whether there was a call not seen before."""
        events = [event for event in events if not (isinstance(event, Entered) and self._is_foreign(event))]
        numbers_now = {event.number for event in events if isinstance(event, Entered)}
        new = not numbers_now <= self._seen
        self._seen |= numbers_now
        ordered = in_order([*self._carried, *events])
        ripe = len(ordered) if until is None else bisect.bisect(ordered, until, key=lambda event: event.time_ns)
        self._carried = ordered[ripe:]
        for event in ordered[:ripe]:
            if isinstance(event, Entered):
                if event.number not in self._callers:
                    self._callers[event.number] = self._programs.get(event.pid, "")
            elif isinstance(event, Exec):
                self._programs[event.pid] = event.filename
            elif isinstance(event, Fork):
                self._programs[event.child] = self._programs.get(event.pid, "")
        return new

    def _is_foreign(self, event: Entered) -> bool:
        key = event.pid, event.number
        if self._left_out[key] >= self._foreign_calls(*key):
            return False
        self._left_out[key] += 1
        return True
