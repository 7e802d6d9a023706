"""`CheckWitness`: sees the kernel's capability checks of one workload, with their stacks, through tracefs.

The trace event `capability:cap_capable` (Linux 6.14) where it exists, else kprobes on the function cap_capable. Beside
it the ends of chosen system calls, and births, execs and deaths of tasks. Only tasks that were armed and their
descendants are seen (`set_event_pid`, `options/event-fork`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from profiler import leftovers
from profiler.errors import HostError
from profiler.witness import instance as tracing
from profiler.witness.events import Classifier, Decoder, Event, Formats, Raw
from profiler.witness.family import Family
from profiler.witness.instance import Instance
from profiler.witness.ringbuffer import EventFormat, parse_format, parse_header_page
from profiler.witness.stacks import StackInfo, classify, kernel_name
from profiler.witness.symbols import Symbols

CHECK_EVENT = "capability/cap_capable"
TASK_EVENTS = ("task/task_newtask", "sched/sched_process_exec", "sched/sched_process_exit")
FORK_EVENT = "sched/sched_process_fork"
BUFFER_KIB = 8192  # a processor: some 40,000 checks with their stacks
PAGES_A_ROUND = 64  # a processor: a round's events go on to the ledger before the next round
# A writer on another processor may have taken its time stamp and not yet committed its event
SETTLE_NS = 2_000_000
ROUND_SECONDS = 0.02
# $argN: kernel/trace/trace_probe.c; security/commoncap.c: cap_capable(cred, target_ns, cap, opts)
ENTRY_PROBE = "p:{group}/check cap_capable cred=$arg1:x64 target_ns=$arg2:x64 cap=$arg3:s32 opts=$arg4:x32\n"
# The credential's own namespace, by the kernel's type information (Linux 6.6, CONFIG_PROBE_EVENTS_BTF_ARGS)
ENTRY_PROBE_BTF = ENTRY_PROBE.replace(" cap=", " capable_ns=cred->user_ns:x64 cap=")
# kernel/cred.c: what a task commits are its own credentials from then on (exec, setuid, capset, unshare)
OWN_PROBE = "p:{group}/own commit_creds cred=$arg1:x64\n"
RETURN_PROBE = "r128:{group}/answer cap_capable ret=$retval:s32\n"  # at most 128 checks under way at a time

# There is one kernel: its functions are read for the first trace, and again only when a module came or went.
_SYMBOLS = Symbols()


def probe() -> str | None:
    """How checks can be seen here: `cap_capable` (the trace event), `kprobe`, or None. Tried, not guessed."""
    try:
        return _kind(tracing.tracefs())
    except HostError:
        return None


def _kind(root: Path) -> str:
    """As `probe`, but says why not. HostError."""
    if (root / "events" / CHECK_EVENT / "format").exists():
        return "cap_capable"
    if not (root / "kprobe_events").exists():
        raise HostError(
            "this kernel has neither the trace event capability:cap_capable nor kprobes",
            "use Linux 6.14 or later, or a kernel with CONFIG_KPROBE_EVENTS",
        )
    group = tracing.probe_group(leftovers.owner_tag()) + "_try"
    try:
        tracing.write(root / "kprobe_events", ENTRY_PROBE.format(group=group))
        tracing.remove_probes(root, group)
    except OSError as error:
        raise HostError(
            f"the kernel refuses a kprobe on cap_capable: {error.strerror or error}",
            "kernel lockdown forbids kprobes: switch it off, or use Linux 6.14 or later",
        ) from error
    return "kprobe"


class CheckWitness:
    """A context manager over a trace instance named after this process. One thread reads.

    `calls` are the system calls (table names) whose ends shall be seen; `absent` those of them that this kernel does
    not have (it makes an event of each call that it implements: SYSCALL_METADATA of include/linux/syscalls.h).
    `buffer_kib` is a processor's buffer, `denied` as in `Classifier`. HostError on entering where checks cannot be
    seen.
    """

    probe = staticmethod(probe)

    def __init__(self, calls: Iterable[str] = (), *, buffer_kib: int = BUFFER_KIB, denied: bool = False) -> None:
        self._denied = denied
        self._calls = sorted(set(calls))
        self._buffer_kib = buffer_kib
        self._symbols = _SYMBOLS
        self._classifier = Classifier()
        self._family = Family()
        self._pipes: list[int] = []
        self._carried: list[Raw] = []
        self._events: list[str] = []
        self._enabled = False
        self._group: str | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._losses: dict[str, int] = {}
        self._instance: Instance | None = None
        self.kind = ""
        self.absent: frozenset[str] = frozenset()

    @classmethod
    def clean_leftovers(cls) -> list[str]:
        """Remove instances and kprobe events that killed runs left; their names. Empty where there is no tracefs."""
        root = tracing.mounted()
        return tracing.clean_leftovers(root) if root else []

    def __enter__(self) -> CheckWitness:
        self._root = tracing.tracefs()
        self.kind = _kind(self._root)
        self._symbols.refresh()
        self._classifier = Classifier(self._symbols.first_namespace, denied=self._denied)
        with tracing.setting_up(self.close):
            self._prepare()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        name = tracing.own_name(self._root)
        self._instance = made = Instance(self._root, name)
        made.prepare(self._buffer_kib)
        if self.kind == "kprobe":
            self._group = tracing.probe_group(name)
            self._probe_with(ENTRY_PROBE_BTF, ENTRY_PROBE)
            self._probe_with(RETURN_PROBE)
            self._probe_with(OWN_PROBE)
        check = f"{self._group}/check" if self._group else CHECK_EVENT
        # a trigger, not options/stacktrace: only this event shall cost a stack
        made.write(f"events/{check}/trigger", "stacktrace\n")
        formats = self._formats(made, check)
        self._layout = parse_header_page(made.read("events/header_page"))
        self._decoder = Decoder(self._layout, formats, self._resolve)
        self._pipes.extend(made.pipes())

    def _probe_with(self, *definitions: str) -> None:
        """Make the first of these kprobe events that the kernel takes. OSError as it answers to the last one."""
        for definition in definitions[:-1]:
            with contextlib.suppress(OSError):
                tracing.write(self._root / "kprobe_events", definition.format(group=self._group))
                return
        tracing.write(self._root / "kprobe_events", definitions[-1].format(group=self._group))

    def _formats(self, made: Instance, check: str) -> Formats:
        def one(event: str) -> EventFormat | None:
            if not made.event(event):
                return None
            if event != "ftrace/kernel_stack":
                self._events.append(event)
            return parse_format(made.read(f"events/{event}/format"))

        stack, checks = one("ftrace/kernel_stack"), one(check)
        if stack is None or checks is None:
            raise HostError("this kernel records no stacks with its trace events", "use one with CONFIG_STACKTRACE")
        exits = {name: one(f"syscalls/sys_exit_{kernel_name(name)}") for name in self._calls}
        if any(exits.values()):  # otherwise it makes no such events at all
            self.absent = frozenset(name for name, format_ in exits.items() if format_ is None)
        newtask, exec_, gone = (one(event) for event in TASK_EVENTS)
        return Formats(
            stack=stack,
            check=checks,
            answer=one(f"{self._group}/answer") if self._group else None,
            own=one(f"{self._group}/own") if self._group else None,
            exits={name: format_ for name, format_ in exits.items() if format_ is not None},
            newtask=newtask,
            fork=None if newtask else one(FORK_EVENT),
            exec=exec_,
            gone=gone,
        )

    def _resolve(self, addresses: tuple[int, ...]) -> StackInfo:
        self._symbols.refresh()
        return classify([self._symbols.name(address) for address in addresses if address])

    # -- following ---------------------------------------------------------------------------------------------------

    def arm(self, pid: int) -> None:
        """See the task `pid` and all that it will make. The filter stands before anything is recorded."""
        self._family.add(pid)
        self._filter(pid)
        if self._enabled:
            return
        made = self._made()
        for event in self._events:
            made.write(f"events/{event}/enable", "1")
        made.write("tracing_on", "1")
        self._enabled = True

    def follow(self, pid: int) -> None:
        """See one more task, and the threads that tasks get without a fork event (io_uring's workers).

        Their numbers are known too late for the kernel's filter: they check as soon as they are there. So from now on
        the kernel shows everybody's events, and those that are nobody's of ours are dropped when they are read.
        HostError where that cannot be; a task that is gone is not noticed.
        """
        self._family.add(pid)
        self._family.alone = True
        try:
            self._made().clear("set_event_pid")
        except OSError as error:
            raise HostError(f"task {pid} cannot be followed: {error.strerror or error}", "trace it again") from error

    def _filter(self, pid: int) -> None:
        try:
            self._made().write("set_event_pid", f"{pid}\n")
        except OSError as error:
            raise HostError(
                f"task {pid} cannot be followed: {error.strerror or error}", "name a running task"
            ) from error

    def _made(self) -> Instance:
        if self._instance is None:
            raise ValueError("the witness is closed")
        return self._instance

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, *, final: bool = False) -> list[Event]:
        """The events since the last time, of all processors in the order of time; never waits.

        Events younger than the moment this began, less a margin, are kept for the next time, for an older one may
        still appear on another processor; `final` returns all.
        """
        watermark = time.monotonic_ns() - SETTLE_NS
        raw, self._carried = self._carried, []
        more = False
        for cpu, pipe in enumerate(self._pipes):
            last = self._drain(cpu, pipe, raw)
            if last is not None:  # this processor has more to read
                watermark, more = min(watermark, last), True
        if final and more:  # the buffer is no longer written: this ends
            return [*self._finish_round(raw, watermark), *self.read(final=True)]
        if final:
            self._decoder.flush(raw)
        return self._finish_round(raw, None if final else watermark)

    def present(self) -> list[Event]:
        """The events up to now, without a margin: all of every task that is stopped. Those of different tasks may come
        out of the order of time over several calls of this method."""
        raw, self._carried = self._carried, []
        for cpu, pipe in enumerate(self._pipes):
            while self._drain(cpu, pipe, raw) is not None:
                pass
        return self._finish_round(raw, None)

    def only_awaited(self, awaited: Container[int]) -> None:
        """Tell the ends of system calls for the tasks in `awaited` alone; it is asked on the reading thread."""
        self._decoder.awaited = awaited

    def _drain(self, cpu: int, pipe: int, raw: list[Raw]) -> int | None:
        """Read one processor's pages; None when it is empty, else the time of the last event read."""
        last = 0
        for _ in range(PAGES_A_ROUND):
            try:
                page = os.read(pipe, self._layout.size)
            except BlockingIOError:
                return None
            if not page:
                return None
            last = self._decoder.page(cpu, page, raw) or last
        return last

    def _finish_round(self, raw: list[Raw], watermark: int | None) -> list[Event]:
        raw.sort(key=lambda event: event[0])
        if watermark is not None and raw and raw[-1][0] > watermark:
            low, high = 0, len(raw)
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if raw[middle][0] <= watermark else (low, middle)
            self._carried = raw[low:]
            del raw[low:]
        events = self._classifier.classify(self._family.keep(raw))
        count, info = self._decoder.accounted()
        if count and info is not None:
            events.append(self._classifier.accounting(time.monotonic_ns(), count, info))
        return events

    def start(self, sink: Callable[[Sequence[Event]], None]) -> None:
        """Read in a thread of our own and hand every batch to `sink` (`Ledger.feed`), until `stop`."""
        self._thread = threading.Thread(target=self._run, args=(sink,), name="check-witness", daemon=True)
        self._thread.start()

    def _run(self, sink: Callable[[Sequence[Event]], None]) -> None:
        try:
            while not self._stop.is_set():
                events = self.read()
                if events:
                    sink(events)
                self._stop.wait(ROUND_SECONDS)
            events = self.read(final=True)
            if events:
                sink(events)
        except BaseException as error:  # handed on to whoever calls stop
            self._failure = error

    def stop(self) -> None:
        """Record no more, hand the rest to the sink and end the thread. Raises what the thread failed with."""
        if self._instance is not None and self._enabled:
            self._instance.write("tracing_on", "0")
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def losses(self) -> dict[str, int]:
        """What was not seen, counted by name; empty when nothing was lost. Still answers after `close`."""
        if self._instance is None:
            return dict(self._losses)
        words = {"overrun": "overwritten events", "commit overrun": "nested events"}
        found = {words.get(name, name): count for name, count in self._instance.lost().items()}
        if not found and self._decoder.missed:
            found["overwritten events"] = self._decoder.missed
        if self._decoder.stackless:
            found["checks without a stack"] = self._decoder.stackless
        if self._classifier.unanswered:
            found["checks without an answer"] = self._classifier.unanswered
        return found

    def close(self) -> None:
        """Stop, and remove the instance and the probes. Idempotent."""
        made = self._instance
        if made is None:
            return
        try:
            self.stop()
        finally:
            with contextlib.suppress(AttributeError):  # failed before there was a decoder
                self._losses = self.losses()
            self._instance = None
            while self._pipes:
                os.close(self._pipes.pop())
            made.remove()
            if self._group is not None:
                tracing.remove_probes(self._root, self._group)
