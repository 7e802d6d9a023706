"""Joins notified calls, their results and the kernel's checks by task and time, and counts what is equal.

Calls come from the listener's thread before they are let go on, everything else from the witness's thread some
milliseconds later, in the order of time. So a call waits in its task's queue until the witness's clock has passed its
end. A check belongs to the task's call in whose time it was made; checks made in no notified call are counted on
their own. What is remembered is bounded whatever the workload does: equal events are one entry with a count, many
examples of one kind are merged into one.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from profiler.model import KernelCheck, Observation, Process
from profiler.tracer.processes import Processes, from_proc
from profiler.witness.events import Accounting, Check, CheckKind, Event, Exec, Exit, Fork, TaskExit

EXAMPLES = 64
ENTRIES = 4096
BATCH = 256  # events handled at a time under the lock, so that the listener is never kept long
MAX_ERRNO = 4095  # include/linux/err.h
# linux/errno.h ERESTARTSYS … ERESTART_RESTARTBLOCK: the call begins again, and is notified again
RESTARTS = frozenset({-512, -513, -514, -516})
EXECS = frozenset({"execve", "execveat"})

Signature = tuple[CheckKind, ...]
_Key = tuple[object, ...]


@dataclass(slots=True, eq=False)
class _Entry:
    """A notified call whose end was not seen yet; later, equal events: the first one, and how many there were."""

    call: str | None
    args: tuple[str, ...]
    path: str | None
    process: Process
    checks: Signature = ()
    time_ns: int = 0
    result: int | None = None
    count: int = 0

    def observation(self) -> Observation:
        checks = tuple(kind.check for kind in self.checks)
        return Observation(self.call, self.args, self.result, self.path, self.process, checks, self.count)


def _opens_program(check: KernelCheck) -> bool:
    """Whether the check was made in an exec for the right to execute the file itself, not for the way to it."""
    return not check.borrowed and any(name.partition(".")[0] == "may_open" for name in check.stack)


def _failure(result: int | None) -> int | None:
    """What tells results apart: the errno, or 0 for every success (descriptors and pids differ each time)."""
    if result is None or -MAX_ERRNO <= result < 0:
        return result
    return 0


class Ledger:
    """`call` and `feed` may run on two threads; `finish` once, when both are done.

    `gate` is the workload's first task: chains of parents end there. `examples` is how many different arguments and
    paths are kept of one kind of call (same program, call, result and checks), `entries` how many entries in all;
    what is beyond is merged into the kind's entry, which keeps the first one's arguments. `carried` tells what the
    kernel compared for an executed file's own capabilities; it is called by `feed`, soon after the file was executed.
    `absent` are calls that this kernel answers with ENOSYS.
    """

    def __init__(
        self,
        gate: int | None = None,
        *,
        examples: int = EXAMPLES,
        entries: int = ENTRIES,
        carried: Callable[[Exec], Signature] = lambda _: (),
        absent: Container[str] = (),
    ) -> None:
        self._lock = threading.Lock()
        self._processes = Processes(gate)
        self._examples = examples
        self._limit = entries
        self._carried = carried
        self._absent = absent
        self._pending: dict[int, list[_Entry]] = {}
        self._opening: dict[int, list[_Entry]] = {}  # by task: checks on opening a program, until it is known which
        self._entries: dict[_Key, _Entry] = {}
        self._of_kind: dict[_Key, int] = {}
        self._order: dict[CheckKind, int] = {}
        self._accounting: _Entry | None = None

    @property
    def accounting(self) -> int:
        """How many checks of memory accounting there were: none of them decides anything."""
        return self._accounting.count if self._accounting else 0

    def call(
        self, pid: int, time_ns: int, name: str, args: tuple[str, ...], path: str | None, process: Process
    ) -> None:
        """A notified call of task `pid`, before it is let go on. `time_ns` on the monotonic clock, read before that.

        `name` is the table's name, `args` rendered, `path` what the call is about. An empty chain of `process` is
        completed from what the witness saw.
        """
        with self._lock:
            pending = _Entry(name, args, path, self._processes.tell(time_ns, pid, process), (), time_ns)
            if name in self._absent:
                self._close(pending, -errno.ENOSYS)
                return
            queue = self._pending.get(pid)
            if queue is None:
                self._pending[pid] = [pending]
            else:
                queue.append(pending)

    def feed(self, events: Sequence[Event]) -> None:
        """The witness's events, in the order of time over all calls of this method."""
        gone = {event.pid for event in events if type(event) is TaskExit}  # /proc has nothing of these any more
        seen = {
            (event.time_ns, event.pid): (None if event.pid in gone else from_proc(event.pid), self._carried(event))
            for event in events
            if type(event) is Exec
        }
        for start in range(0, len(events), BATCH):
            with self._lock:
                for event in events[start : start + BATCH]:
                    if isinstance(event, Exit):
                        if event.pid in self._pending:
                            self._exit(event)
                    elif isinstance(event, Check):
                        self._check(event)
                    elif isinstance(event, Accounting):
                        self._account(event.kind, event.checks)
                    else:
                        self._task(event, seen)

    def finish(self) -> tuple[tuple[Observation, ...], int]:
        """Close what is open, with unknown results: every observation, in the order first seen, and the number of
        processes. Memory accounting is one observation, the last, whoever did it."""
        with self._lock:
            for queue in self._pending.values():
                for pending in queue:
                    self._close(pending, None)
            self._pending.clear()
            for pid in tuple(self._opening):
                self._not_executed(pid)
            entries = list(self._entries.values())
            if self._accounting is not None:
                entries.append(self._accounting)
            return tuple(entry.observation() for entry in entries), self._processes.count

    # -- one event each, under the lock ------------------------------------------------------------------------------

    def _task(
        self, event: Fork | Exec | TaskExit, seen: dict[tuple[int, int], tuple[Process | None, Signature]]
    ) -> None:
        if isinstance(event, Fork):
            self._close_before(event.child, event.time_ns)  # a reused pid
            self._processes.forked(event.time_ns, event.pid, event.child, thread=bool(event.thread))
        elif isinstance(event, Exec):
            for pid in {event.pid, event.old_pid}:
                self._close_before(pid, event.time_ns, executed=pid == event.old_pid)
            found, carried = seen.get((event.time_ns, event.pid), (None, ()))
            self._processes.executed(event.time_ns, event.pid, event.old_pid, event.filename, found)
            args = (f'"{event.filename}"',)
            for opened in self._opening.pop(event.old_pid, ()):
                opened.args, opened.path = args, event.filename
                self._count(opened, 0)
            if carried:
                by = self._processes.of(event.pid)
                self._count(_Entry("execve", args, event.filename, by, carried, event.time_ns), 0)
        else:
            self._close_before(event.pid, event.time_ns)
            self._not_executed(event.pid)
            self._processes.ended(event.time_ns, event.pid)

    def _close_before(self, pid: int, time_ns: int, *, executed: bool = False) -> None:
        """Close the calls that `pid` began before `time_ns`. `executed`: the last one, if it is an exec, succeeded."""
        queue = self._pending.get(pid)
        if queue is None:
            return
        done = [pending for pending in queue if pending.time_ns <= time_ns]
        for pending in done:
            last = executed and pending is done[-1] and pending.call in EXECS
            self._close(pending, 0 if last else None)
        self._drop(pid, queue, len(done))

    def _exit(self, event: Exit) -> None:
        queue = self._pending[event.pid]
        for at, pending in enumerate(queue):
            if pending.time_ns > event.time_ns:
                return
            if pending.call == event.name:
                for older in queue[:at]:
                    self._close(older, None)
                if event.result not in RESTARTS or pending.checks:
                    self._close(pending, None if event.result in RESTARTS else event.result)
                self._drop(event.pid, queue, at + 1)
                return

    def _check(self, event: Check) -> None:
        kind = event.kind
        if kind.accounting:
            self._account(kind, 1)
            return
        pending = self._under_way(event.pid, event.time_ns)
        if pending is not None and (kind.call is None or kind.call == pending.call):
            if kind not in pending.checks:
                pending.checks = (*pending.checks, kind)
            return
        alone = _Entry(kind.call, (), None, self._processes.of(event.pid), (kind,))
        waiting = self._opening.get(event.pid)
        if waiting is not None and (kind.call not in EXECS or any(kind in one.checks for one in waiting)):
            self._not_executed(event.pid)  # it went on to something else, or tries another file
        if kind.call in EXECS and _opens_program(kind.check):
            self._opening.setdefault(event.pid, []).append(alone)
        else:
            self._count(alone, None)

    def _not_executed(self, pid: int) -> None:
        """The task did not execute what it had opened, or ended meanwhile: which file it was is not known."""
        for alone in self._opening.pop(pid, ()):
            self._count(alone, None)

    def _under_way(self, pid: int, time_ns: int) -> _Entry | None:
        """The task's call that was under way at a time; those before it must have ended, and are closed."""
        queue = self._pending.get(pid)
        if queue is None or queue[0].time_ns > time_ns:
            return None
        at = 0
        while at + 1 < len(queue) and queue[at + 1].time_ns <= time_ns:
            self._close(queue[at], None)
            at += 1
        del queue[:at]
        return queue[0]

    def _drop(self, pid: int, queue: list[_Entry], count: int) -> None:
        if count == len(queue):
            del self._pending[pid]
        else:
            del queue[:count]

    # -- counting ----------------------------------------------------------------------------------------------------

    def _close(self, pending: _Entry, result: int | None) -> None:
        if len(pending.checks) > 1:  # the same checks in another order are the same
            order = self._order
            pending.checks = tuple(sorted(pending.checks, key=lambda kind: order.setdefault(kind, len(order))))
        self._count(pending, result)

    def _account(self, kind: CheckKind, count: int) -> None:
        if self._accounting is None:
            self._accounting = _Entry(None, (), None, Process(0, ""), (kind,))
        self._accounting.count += count

    def _count(self, new: _Entry, result: int | None) -> None:
        process, failure = new.process, _failure(result)
        exact = (process.exe, process.uid, process.real_uid, new.call, new.args, failure, new.path, new.checks)
        entry = self._entries.get(exact)
        if entry is None:
            new.result = result
            kind = (process.exe, process.uid, process.real_uid, new.call, failure, new.checks)
            entry = self._place(exact, kind, new)
        entry.count += 1

    def _place(self, exact: _Key, kind: _Key, new: _Entry) -> _Entry:
        """The entry in which an event counts that has none of its own yet: `new`, or one that is merged."""
        examples = self._of_kind.get(kind, 0)
        if examples < self._examples and len(self._entries) < self._limit:
            self._of_kind[kind] = examples + 1
            self._entries[exact] = new
            return new
        # first one entry for the kind; in a full ledger one for the call, whoever made it and whatever it returned
        full = len(self._entries) >= self._limit + self._limit // 4
        merged = (new.call, new.checks) if full else kind
        return self._entries.get(kind) or self._entries.setdefault(merged, new)
