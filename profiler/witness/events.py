"""The witness's events as types, and the way from a ring buffer's page to them: decode a page, then classify in order.

Decoding happens for each processor on its own, classifying after the processors' events have been merged by time, for
whose credentials a check used is only known from what the same task did before. Checks that repeat share one
`CheckKind`; memory accounting, which is most of all checks, is only counted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from profiler.kernel import capabilities
from profiler.model import KernelCheck
from profiler.witness.ringbuffer import EventFormat, PageLayout, missed, records
from profiler.witness.stacks import UNKNOWN, StackInfo

CLONE_THREAD = 0x00010000  # linux/sched.h
# Calls that may give the caller other credentials (`commit_creds`)
CREDENTIAL_CALLS = frozenset(
    {"setuid", "setreuid", "setresuid", "setfsuid", "setgid", "setregid", "setresgid", "setfsgid", "setgroups"}
    | {"capset", "prctl", "unshare", "setns", "keyctl", "execve", "execveat"}
)
CAP_OPT_NOAUDIT = 2  # linux/security.h


@dataclass(frozen=True, eq=False, slots=True)
class CheckKind:
    """Checks that are alike share one object: compare by identity. `check.stack` is the first stack seen.

    `call` is the system call in whose frame it was made. `accounting`: it decides nothing. `audited` is None where
    the witness cannot tell (the trace event does not say, a kprobe on cap_capable does).
    """

    check: KernelCheck
    call: str | None
    accounting: bool = False
    audited: bool | None = None


class Check(NamedTuple):
    """A capability check of task `pid` (as the kernel numbers threads, in the first pid namespace)."""

    time_ns: int
    pid: int
    kind: CheckKind


class Exit(NamedTuple):
    """The end of a system call: its table name and result (negative errno on failure)."""

    time_ns: int
    pid: int
    name: str
    result: int


class Fork(NamedTuple):
    """`pid` made the task `child`; `thread` is None where the kernel's event does not tell threads from processes."""

    time_ns: int
    pid: int
    child: int
    thread: bool | None


class Exec(NamedTuple):
    """`pid` executes `filename` (as it was given); `old_pid` is the thread that called, which took over `pid`."""

    time_ns: int
    pid: int
    old_pid: int
    filename: str


class TaskExit(NamedTuple):
    """The task `pid` is gone."""

    time_ns: int
    pid: int


class Accounting(NamedTuple):
    """`checks` checks of memory accounting, by whatever tasks, since the last such event."""

    time_ns: int
    checks: int
    kind: CheckKind


Event = Check | Exit | Fork | Exec | TaskExit | Accounting


class _RawCheck(NamedTuple):
    time_ns: int
    pid: int
    cred: int
    target_ns: int
    cap: int
    granted: bool | None  # None: the answer is a kretprobe's and follows
    audited: bool | None
    info: StackInfo
    held_in: int = 0  # the namespace of the credential that was granted it, where the event tells


class _Answer(NamedTuple):
    time_ns: int
    pid: int
    granted: bool


class _Own(NamedTuple):
    """Memory accounting was seen to use this credential, or it was committed: it is the task's own.

    `target_ns` is the first user namespace, 0 where a commit does not tell.
    """

    time_ns: int
    pid: int
    cred: int
    target_ns: int


Raw = _RawCheck | _Answer | _Own | Exit | Fork | Exec | TaskExit


@dataclass
class Formats:
    """The `format` files of the events that are enabled. `answer` and `own` only with kprobes; `exits` by table
    name."""

    stack: EventFormat
    check: EventFormat
    answer: EventFormat | None = None
    own: EventFormat | None = None
    exits: dict[str, EventFormat] = field(default_factory=dict)
    newtask: EventFormat | None = None
    fork: EventFormat | None = None
    exec: EventFormat | None = None
    gone: EventFormat | None = None


_U16 = struct.Struct("<H").unpack_from


class Decoder:
    """Decodes pages. `resolve` turns the addresses of a stack (nearest first) into what it means; asked once a stack.

    `stackless` counts checks whose stack did not follow, `missed` events that a page says were overwritten. `awaited`
    may be set: ends of system calls are then told for the tasks in it only (most calls of a traced name were not
    stopped, and nobody asks for their results).
    """

    def __init__(self, layout: PageLayout, formats: Formats, resolve: Callable[[tuple[int, ...]], StackInfo]) -> None:
        self._layout = layout
        self._resolve = resolve
        self._formats = formats
        self._check_id, self._stack_id = formats.check.id, formats.stack.id
        self._callers = formats.stack.fields["caller"].offset
        self._stacks: dict[bytes, StackInfo] = {}
        self._held: dict[int, tuple[int, bytes]] = {}  # by processor: a check whose stack has not come yet
        self._seen: dict[int, int] = {}  # by task: the last credential that memory accounting showed
        self._accounted = 0
        self._accounting: StackInfo | None = None
        self.stackless = 0
        self.missed = 0
        self.awaited: Container[int] | None = None
        self._exits = {
            one.id: (name, one.unpacker("common_pid", "ret").unpack_from) for name, one in formats.exits.items()
        }
        self._others = dict(self._decoders())
        probed = formats.answer is not None
        holder = ("capable_ns",) if "capable_ns" in formats.check.fields else ()
        names = ("common_pid", "cred", "target_ns", *holder, "cap", "opts" if probed else "ret")
        self._probed = probed
        self._check = formats.check.unpacker(*names).unpack_from
        self._own = formats.check.unpacker("common_pid", "cred", "target_ns").unpack_from

    def _decoders(self) -> Iterable[tuple[int, Callable[[int, bytes], Raw]]]:
        formats = self._formats
        if formats.answer:
            read = formats.answer.unpacker("common_pid", "ret").unpack_from
            yield formats.answer.id, lambda time, data: _Answer(time, (found := read(data))[0], found[1] == 0)
        if formats.own:
            committed = formats.own.unpacker("common_pid", "cred").unpack_from
            yield formats.own.id, lambda time, data: _Own(time, (found := committed(data))[0], found[1], 0)
        if formats.newtask:
            yield formats.newtask.id, newtask_decoder(formats.newtask)
        if formats.fork:
            yield formats.fork.id, fork_decoder(formats.fork)
        if formats.exec:
            yield formats.exec.id, exec_decoder(formats.exec)
        if formats.gone:
            gone = formats.gone.unpacker("common_pid").unpack_from
            yield formats.gone.id, lambda time, data: TaskExit(time, gone(data)[0])

    def page(self, cpu: int, page: bytes, out: list[Raw]) -> int:
        """Append the events of one page of processor `cpu` to `out`; the time of its last event, 0 for an empty one."""
        self.missed += missed(page, self._layout)
        check_id, stack_id, callers, stacks, seen = (
            self._check_id, self._stack_id, self._callers, self._stacks, self._seen,
        )  # fmt: skip
        others, own, exits, awaited = self._others, self._own, self._exits, self.awaited
        held = self._held.pop(cpu, None)
        time = 0
        for time, start, end in records(page, self._layout):
            kind = _U16(page, start)[0]
            if kind == check_id:
                if held is not None:
                    self._emit(held, None, out)
                held = (time, page[start:end])
            elif kind == stack_id:
                if held is None:
                    continue
                key = page[start + callers : end]
                info = stacks.get(key)
                if info is None:
                    info = stacks[key] = self._resolve(struct.unpack(f"<{len(key) // 8}Q", key[: len(key) & ~7]))
                if info.accounting:
                    self._accounted += 1
                    pid, cred, target = own(held[1])
                    if info.own and seen.get(pid) != cred:
                        seen[pid] = cred
                        out.append(_Own(held[0], pid, cred, target))
                        self._accounting = self._accounting or info
                else:
                    self._emit(held, info, out)
                held = None
            elif kind in exits:
                name, read = exits[kind]
                pid, result = read(page, start)
                if awaited is None or pid in awaited:
                    out.append(Exit(time, pid, name, result))
            elif kind in others:
                event = others[kind](time, page[start:end])
                if type(event) is TaskExit:
                    seen.pop(event.pid, None)
                out.append(event)
        if held is not None:
            self._held[cpu] = held
        return time

    def flush(self, out: list[Raw]) -> None:
        """Append the checks whose stack never came."""
        for held in self._held.values():
            self._emit(held, None, out)
        self._held.clear()

    def accounted(self) -> tuple[int, StackInfo | None]:
        """How many checks of memory accounting were decoded since the last time this was asked, and one's stack."""
        count, self._accounted = self._accounted, 0
        return count, self._accounting

    def _emit(self, held: tuple[int, bytes], info: StackInfo | None, out: list[Raw]) -> None:
        if info is None:
            self.stackless += 1
            info = UNKNOWN
        pid, cred, target, *holder, cap, last = self._check(held[1])
        held_in = holder[0] if holder else 0
        if info.call in CREDENTIAL_CALLS:
            self._seen.pop(pid, None)  # the next accounting says what they are now, even if they are the same
        if self._probed:
            out.append(_RawCheck(held[0], pid, cred, target, cap, None, not last & CAP_OPT_NOAUDIT, info, held_in))
        else:
            out.append(_RawCheck(held[0], pid, cred, target, cap, last == 0, None, info, held_in))


def newtask_decoder(one: EventFormat) -> Callable[[int, bytes], Fork]:
    """Decodes `task:task_newtask`: the time and the event's data in, a `Fork` out."""
    read = one.unpacker("common_pid", "pid", "clone_flags").unpack_from

    def decode(time: int, data: bytes) -> Fork:
        parent, child, flags = read(data)
        return Fork(time, parent, child, bool(flags & CLONE_THREAD))

    return decode


def fork_decoder(one: EventFormat) -> Callable[[int, bytes], Fork]:
    """The same for `sched:sched_process_fork`, which does not tell threads from processes."""
    read = one.unpacker("common_pid", "child_pid").unpack_from

    def decode(time: int, data: bytes) -> Fork:
        parent, child = read(data)
        return Fork(time, parent, child, None)

    return decode


def exec_decoder(one: EventFormat) -> Callable[[int, bytes], Exec]:
    """The same for `sched:sched_process_exec`."""
    read = one.unpacker("filename", "pid", "old_pid").unpack_from

    def decode(time: int, data: bytes) -> Exec:
        where, pid, old_pid = read(data)  # __data_loc: the offset in the low 16 bits, the length in the high ones
        name = data[where & 0xFFFF : (where & 0xFFFF) + (where >> 16)].rstrip(b"\0")
        return Exec(time, pid, old_pid, name.decode("utf-8", "surrogateescape"))

    return decode


class Classifier:
    """Turns decoded events, merged in the order of time, into the ledger's: pairs kretprobes, tells borrowed checks.

    A check is *borrowed* when its credential is not the task's own. The task's own credential cannot be read, so it
    is learned: from its commit where a kprobe sees it (kernel/cred.c, `commit_creds`, also in every exec), else from
    memory accounting, which always asks with current's own (every exec and mmap does it). So does every check whose
    stack shows neither overlayfs, nor an opener's (`file_ns_capable`), nor another task's credentials.
    A check that overlayfs makes below its own functions is borrowed unless its credential is known to be the own one:
    a mounter's is always a copy (fs/overlayfs/super.c, `ovl_fill_super`), so the stack alone is almost certain. An
    opener's check is borrowed when its credential differs from a known own one. After a call that takes other
    credentials (setuid) the own one is out of date until the next check: an opener's check is not called borrowed then,
    while overlayfs's still is.

    A check is against a *foreign namespace* when its target is not the first user namespace, which memory accounting
    always asks about (security/commoncap.c, `cap_vm_enough_memory`). It is granted *from above* to a credential of the
    first one: to the other's owner, whatever it holds, or to who holds the capability (cap_capable_helper).

    `home` is the address of the first user namespace, where it is known beforehand. `denied` tells of a denied run, in
    which the workload's own credentials change all the time: an opener's count as the task's own, since they differ
    only in what was taken away, and so does what is refused in overlayfs (whose mounter is refused nothing, or is such
    a task). `unanswered` counts checks whose kretprobe was missed (too many at a time).
    """

    def __init__(self, home: int | None = None, *, denied: bool = False) -> None:
        self._denied = denied
        self.unanswered = 0
        self._own: dict[int, int] = {}
        self._stale: set[int] = set()  # tasks that may have taken other credentials since
        self._home = home
        self._asked: dict[int, _RawCheck] = {}  # by task: the check whose kretprobe has not fired yet
        self._kinds: dict[tuple[object, ...], CheckKind] = {}

    def classify(self, raw: Iterable[Raw]) -> list[Event]:
        """The events for the ledger, in the same order."""
        out: list[Event] = []
        for event in raw:
            if isinstance(event, _RawCheck):
                if event.granted is None:
                    self.unanswered += event.pid in self._asked
                    self._asked[event.pid] = event
                else:
                    out.append(self._check(event, event.granted))
            elif isinstance(event, Exit):
                out.append(event)
            elif isinstance(event, _Answer):
                asked = self._asked.pop(event.pid, None)
                if asked is not None:  # else the answer to memory accounting
                    out.append(self._check(asked, event.granted))
            elif isinstance(event, _Own):
                self._learn(event.pid, event.cred)
                self._home = event.target_ns or self._home
                self._asked.pop(event.pid, None)
            else:
                if isinstance(event, Fork):
                    self._forked(event)
                elif isinstance(event, TaskExit):
                    self._own.pop(event.pid, None)
                    self._stale.discard(event.pid)
                    self._asked.pop(event.pid, None)
                out.append(event)
        return out

    def accounting(self, time_ns: int, count: int, info: StackInfo) -> Accounting:
        """An event that stands for `count` checks of memory accounting."""
        return Accounting(time_ns, count, self._kind(capabilities.NUMBER["SYS_ADMIN"], True, info))

    def _learn(self, pid: int, cred: int) -> None:
        self._own[pid] = cred
        self._stale.discard(pid)

    def _forked(self, event: Fork) -> None:
        # threads share their credentials (kernel/cred.c, copy_creds); a process gets a copy of its own
        if event.thread and event.pid in self._own:
            self._own[event.child] = self._own[event.pid]
        else:
            self._own.pop(event.child, None)
        self._asked.pop(event.child, None)

    def _check(self, event: _RawCheck, granted: bool) -> Check:
        info = event.info
        borrowed = False
        if info.own:
            self._learn(event.pid, event.cred)
            if info.call in CREDENTIAL_CALLS:
                self._stale.add(event.pid)
        elif info.overlay:
            own = self._own.get(event.pid)
            borrowed = (own is None or own != event.cred) and (granted or not self._denied)
        elif info.opener and event.pid not in self._stale and not self._denied:
            borrowed = self._own.get(event.pid, event.cred) != event.cred
        foreign = self._home is not None and event.target_ns != self._home
        above = foreign and granted and event.held_in == self._home
        kind = self._kind(
            event.cap, granted, info, borrowed=borrowed, foreign=foreign, above=above, audited=event.audited
        )
        return Check(event.time_ns, event.pid, kind)

    def _kind(
        self,
        cap: int,
        granted: bool,
        info: StackInfo,
        *,
        borrowed: bool = False,
        foreign: bool = False,
        above: bool = False,
        audited: bool | None = None,
    ) -> CheckKind:
        key = (cap, granted, info.site, info.via, info.call, borrowed, foreign, above, audited)
        kind = self._kinds.get(key)
        if kind is None:
            check = KernelCheck(capabilities.name_of(cap), granted, info.site, info.stack, borrowed, foreign, above)
            kind = self._kinds[key] = CheckKind(check, info.call, info.accounting, audited)
        return kind
