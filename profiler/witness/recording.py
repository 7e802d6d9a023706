"""A recording of chosen trace events in a tracefs instance of its own, read as typed events in the order of time.

It knows no workload and no engine: who is recorded, and which events, is said by `calls` and `starts`, which ask it
for the entries of system calls. Costs nothing while there is none.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from profiler.errors import HostError
from profiler.witness import instance as tracing
from profiler.witness.events import Exec, Fork, exec_decoder, fork_decoder, newtask_decoder
from profiler.witness.instance import Instance
from profiler.witness.ringbuffer import EventFormat, missed, parse_format, parse_header_page, records

ENTER: Final = "raw_syscalls/sys_enter"
LEAVE: Final = "raw_syscalls/sys_exit"
EXEC: Final = "sched/sched_process_exec"
NEWTASK: Final = "task/task_newtask"
FORK: Final = "sched/sched_process_fork"  # where there is no task_newtask; does not tell threads from processes
BUFFER_KIB: Final = 16384  # a processor: some 200,000 entries of system calls
_ARGUMENTS = struct.Struct("<3Q").unpack_from
_U16 = struct.Struct("<H").unpack_from


class Entered(NamedTuple):
    """Task `pid` entered the system call `number`, with these first three arguments."""

    time_ns: int
    pid: int
    number: int
    args: tuple[int, int, int]


class Left(NamedTuple):
    """Task `pid` came back from the system call `number` with `result` (negative errno on failure)."""

    time_ns: int
    pid: int
    number: int
    result: int


Recorded = Entered | Left | Fork | Exec
_Decode = Callable[[int, bytes], Recorded]


def available() -> bool:
    """Whether this kernel tells of the entries of system calls (CONFIG_FTRACE_SYSCALLS). False without tracefs."""
    root = tracing.mounted()
    return root is not None and (root / "events" / ENTER / "filter").exists()


class Recording:
    """A context manager. HostError on entering where the kernel does not tell of these events.

    `events` are the names above; `buffer_kib` is a processor's buffer. Nothing is recorded before `start`.
    """

    def __init__(self, *events: str, buffer_kib: int = BUFFER_KIB) -> None:
        self._events = events
        self._buffer_kib = buffer_kib
        self._instance: Instance | None = None
        self._pipes: list[int] = []
        self._decoders: dict[int, _Decode] = {}
        self._missed = 0

    def __enter__(self) -> Self:
        root = tracing.tracefs()
        if not available():
            raise HostError(
                "this kernel does not tell which system calls are made (no trace event raw_syscalls:sys_enter)",
                "use a kernel with CONFIG_FTRACE_SYSCALLS, or leave --seccomp observed out",
            )
        with tracing.setting_up(self.close):
            self._prepare(root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, root: Path) -> None:
        self._instance = made = Instance(root, tracing.own_name(root))
        made.prepare(self._buffer_kib)
        self._enabled = [FORK if name == NEWTASK and not made.event(NEWTASK) else name for name in self._events]
        for name in self._enabled:
            one = parse_format(made.read(f"events/{name}/format"))
            self._decoders[one.id] = _decoder(name, one)
        self._layout = parse_header_page(made.read("events/header_page"))
        self._pipes.extend(made.pipes())

    def start(self, pids: Iterable[int] = ()) -> None:
        """Record the tasks `pids` and all that they make; every task of the host where none is named.

        HostError when none of them is there any more.
        """
        made = self._made()
        try:
            for pid in pids:
                made.write("set_event_pid", f"{pid}\n")
            for name in self._enabled:
                made.write(f"events/{name}/enable", "1")
            made.write("tracing_on", "1")
        except OSError as error:
            raise HostError(f"system calls cannot be recorded: {error.strerror or error}", "run it again") from error

    def only(self, name: str, condition: str) -> None:
        """Record the event `name` only where `condition` holds (a filter of tracefs). It takes effect at once."""
        self._made().write(f"events/{name}/filter", condition)

    def read(self) -> list[Recorded]:
        """What was recorded since the last time and has been written to the end, each processor's in its order."""
        found: list[Recorded] = []
        for pipe in self._pipes:
            for page in self._pages(pipe):
                self._missed += missed(page, self._layout)
                for time, start, end in records(page, self._layout):
                    decode = self._decoders.get(_U16(page, start)[0])
                    if decode is not None:
                        found.append(decode(time, page[start:end]))
        return found

    def _pages(self, pipe: int) -> Iterator[bytes]:
        while True:
            try:
                page = os.read(pipe, self._layout.size)
            except BlockingIOError:
                return
            if not page:
                return
            yield page

    def stop(self) -> list[Recorded]:
        """Record no more; the rest, as from `read`."""
        self._made().write("tracing_on", "0")
        return self.read()

    def lost(self) -> int:
        """How many events were overwritten before they were read, or dropped; ask it before `close`."""
        return max(self._missed, sum(self._made().lost().values()))

    def close(self) -> None:
        """Remove the instance. Idempotent."""
        made, self._instance = self._instance, None
        while self._pipes:
            os.close(self._pipes.pop())
        if made is not None:
            made.remove()

    def _made(self) -> Instance:
        if self._instance is None:
            raise ValueError("the recording is closed")
        return self._instance


def in_order(events: Sequence[Recorded]) -> list[Recorded]:
    """All processors' events in the order of time."""
    return sorted(events, key=lambda event: event.time_ns)


def _decoder(name: str, one: EventFormat) -> _Decode:
    if name == ENTER:
        number_of, at = one.unpacker("common_pid", "id").unpack_from, one.fields["args"].offset

        def entered(time: int, data: bytes) -> Recorded:
            pid, number = number_of(data)
            return Entered(time, pid, number, _ARGUMENTS(data, at))

        return entered
    if name == LEAVE:
        result_of = one.unpacker("common_pid", "id", "ret").unpack_from
        return lambda time, data: Left(time, *result_of(data))
    if name == EXEC:
        return exec_decoder(one)
    return newtask_decoder(one) if name == NEWTASK else fork_decoder(one)
