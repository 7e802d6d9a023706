"""Counts notified calls as a seccomp filter sees them: number and registers, without what registers point at. Of equal
ones the first is also kept as people read it.

They are later held against the engine's own filter. Registers that hold addresses are 0: they differ in every call, and
no filter can look behind them.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Container, Sequence
from typing import Final

from profiler.model import Process, RawCall
from profiler.tracer.calls import DecodedCall
from profiler.witness.events import Event, Exit, TaskExit

DISTINCT: Final = 64  # different arguments kept of one call
_PENDING: Final = 4096  # calls of one thread whose result the witness still owes
_RESTARTS = frozenset({-512, -513, -514, -516})  # linux/errno.h: the call begins again, and is notified again
_NEGATIVE: Final = 1 << 63
Registers = tuple[int, int, int, int, int, int]
_NONE: Final[Registers] = (0, 0, 0, 0, 0, 0)


class _Entry:
    __slots__ = ("args", "call", "count", "name", "number", "process", "result")

    def __init__(self, call: DecodedCall, number: int, args: Registers, process: Process) -> None:
        self.name = call.name
        self.call = call
        self.number = number
        self.args = args
        self.process = process
        self.result: int | None = None
        self.count = 0


class RawCalls:
    """`call` and `feed` may run on two threads. `absent` are calls that this kernel answers with ENOSYS."""

    def __init__(self, absent: Container[str] = (), *, witnessed: bool = True) -> None:
        self._lock = threading.Lock()
        self._absent = absent
        self._witnessed = witnessed
        self._entries: dict[tuple[str, int, Registers], _Entry] = {}
        self._distinct: dict[str, int] = {}
        self._pending: dict[int, list[tuple[int, _Entry]]] = {}
        self.total = 0

    def call(
        self, pid: int, call: DecodedCall, number: int, args: Registers, *, time_ns: int, process: Process
    ) -> None:
        """A notified call of thread `pid`, before it is let go on; `time_ns` on the monotonic clock."""
        # addresses of a 64-bit program lie above 4 GiB, except those of one that is not position-independent
        if max(args) > 0xFFFFFFFF:
            args = tuple([0 if 0xFFFFFFFF < value < _NEGATIVE else value for value in args])  # type: ignore[assignment]
        with self._lock:
            self.total += 1
            entry = self._entry(call, number, args, process)
            entry.count += 1
            if call.name in self._absent:
                entry.result = -errno.ENOSYS
            elif self._witnessed:
                queue = self._pending.setdefault(pid, [])
                queue.append((time_ns, entry))
                if len(queue) > _PENDING:
                    del queue[0]

    def _entry(self, call: DecodedCall, number: int, args: Registers, process: Process) -> _Entry:
        name = call.name
        entry = self._entries.get((name, number, args))
        if entry is None:
            distinct = self._distinct.get(name, 0)
            if distinct >= DISTINCT:
                args = _NONE
                entry = self._entries.get((name, number, args))
            if entry is None:
                self._distinct[name] = distinct + 1
                entry = self._entries[name, number, args] = _Entry(call, number, args, process)
        return entry

    @property
    def awaiting(self) -> Container[int]:
        """The threads of whose calls some result is still to come, at any time; may be asked on any thread."""
        return self._pending

    def feed(self, events: Sequence[Event]) -> None:
        """The witness's events, in the order of time: ends of calls give results, a success outweighing failures."""
        pending = self._pending
        for event in events:
            if isinstance(event, Exit):
                if event.pid in pending:
                    self._exit(event)
            elif isinstance(event, TaskExit) and event.pid in pending:
                with self._lock:
                    pending.pop(event.pid, None)

    def _exit(self, event: Exit) -> None:
        with self._lock:
            queue = self._pending.get(event.pid, [])
            for at, (time_ns, entry) in enumerate(queue):
                if time_ns > event.time_ns:
                    return
                if entry.name == event.name:
                    if event.result not in _RESTARTS and (entry.result is None or entry.result < 0):
                        entry.result = event.result
                    del queue[: at + 1]
                    if not queue:
                        del self._pending[event.pid]
                    return

    def finish(self) -> tuple[RawCall, ...]:
        """Every call in the order first seen, by whoever made it first."""
        with self._lock:
            return tuple(
                RawCall(e.name, e.number, e.args, e.process, e.result, e.count, e.call.args, e.call.path)
                for e in self._entries.values()
            )
