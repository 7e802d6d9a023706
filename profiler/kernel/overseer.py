"""Every task of a workload under one tracer, stopped at the entry and at the exit of its system calls.

A seccomp filter says which calls these are (RET_TRACE): at the others nobody stops.

What is done there an `Overseer` decides. It may have a task make another call before the one that it is about to make,
with the task's own `syscall` instruction, and it may have a call that has just ended made again. Sources: ptrace(2),
PTRACE_GET_SYSCALL_INFO of linux/ptrace.h (Linux 5.3), arch/x86/kernel/signal.c (a call that begins again).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import threading
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ptrace import PtraceError
from ptrace.binding import func

from profiler.errors import HostError
from profiler.kernel import stops
from profiler.kernel.bpf import AUDIT_ARCH_X86_64
from profiler.kernel.namespaces import oserror
from profiler.kernel.steer import Steered
from profiler.kernel.stops import Ended, Stop

PTRACE_GET_SYSCALL_INFO: Final = 0x420E
# struct ptrace_syscall_info: op, arch, instruction_pointer, stack_pointer, then entry{nr, args[6]} or exit{rval, …}
_INFO: Final = struct.Struct("=BxxxIQQ7Q")
_EXIT, _SECCOMP = 2, 3  # PTRACE_SYSCALL_INFO_EXIT, PTRACE_SYSCALL_INFO_SECCOMP
_SYSCALL_LENGTH: Final = 2  # of the instruction `syscall`
_ALL: Final = (1 << 64) - 1
_OPTIONS: Final = (
    stops.PTRACE_O_EXITKILL
    | stops.PTRACE_O_TRACESECCOMP
    | func.PTRACE_O_TRACESYSGOOD
    | func.PTRACE_O_TRACEEXEC
    | func.PTRACE_O_TRACEFORK
    | func.PTRACE_O_TRACEVFORK
    | func.PTRACE_O_TRACECLONE
)
_BIRTHS: Final = frozenset({func.PTRACE_EVENT_FORK, func.PTRACE_EVENT_VFORK, func.PTRACE_EVENT_CLONE})


class Call(NamedTuple):
    """A system call that a task is about to make: number, AUDIT_ARCH_* of its table, and the six registers."""

    number: int
    arch: int
    args: tuple[int, ...]

    @property
    def native(self) -> bool:
        """Made by the 64-bit table."""
        return self.arch == AUDIT_ARCH_X86_64


class Injection(NamedTuple):
    """A call that a task makes before its own: the number, and up to six arguments."""

    number: int
    args: tuple[int, ...]


class Overseer(Protocol):
    """Who decides. Tasks are threads, numbered as this process numbers them; every method is called on one thread."""

    def born(self, task: int, parent: int) -> None:
        """`task`, made by `parent`, exists and has not yet run an instruction."""

    def executed(self, task: int, former: int) -> None:
        """`task` has become another program; it was the thread `former` before."""

    def entering(self, task: int, call: Call) -> Injection | None:
        """`task` is about to make `call`. An injection is made first; then this is asked again."""

    def injected(self, task: int, result: int) -> None:
        """What the kernel answered to an injection (negative errno on failure)."""

    def left(self, task: int, result: int) -> bool:
        """The call that `task` was last seen entering has ended; True has it made again."""

    def ended(self, task: int) -> None:
        """`task` is gone."""


@dataclass(slots=True, eq=False)
class _Followed:
    entered: bool = False  # an entry was seen whose exit was not
    own: stops.Registers = None  # while it makes an injection: the registers of its own call


class Overseen(Steered):
    """A steered process whose workload is overseen. No child of ours: its end is reaped here."""

    _options = stops.PTRACE_O_TRACESECCOMP

    def __init__(self, pid: int) -> None:
        """For `seize` only."""
        super().__init__(pid)
        self.first_ended = threading.Event()  # the first process has, whoever else goes on
        self._tasks: dict[int, _Followed] = {}
        self._early: set[int] = set()  # children that stopped before their parent told of them
        self._reaping = threading.Lock()

    def stop_at(self, program: bytes) -> None:
        """Make the tracee confine itself by `program`: it stops at the calls to which this answers RET_TRACE, and makes
        them none the less, as long as it is traced so. Raises as `install_filter`."""
        self._confine(program, (0,))

    def oversee(self, overseer: Overseer) -> None:
        """Let the workload run, in place of `hold`, until every task of it has ended. Raises what `overseer` raises;
        the tasks are then killed when this thread ends. HostError on a kernel without PTRACE_GET_SYSCALL_INFO."""
        self._belongs()
        self._overseer = overseer
        self._tasks[self.pid] = _Followed()
        with contextlib.suppress(ProcessLookupError):
            stops.request(func.PTRACE_SETOPTIONS, self.pid, 0, _OPTIONS)
        self._let_signals_through()
        overseer.born(self.pid, self.pid)
        overseer.executed(self.pid, self.pid)
        self._go_on(self.pid)
        while (found := self._next()) is not None:
            task, what = found
            if isinstance(what, Ended):
                self._gone_for_good(task, what)
            else:
                with contextlib.suppress(ProcessLookupError):  # killed while it was stopped: its end is told, too
                    self._stopped(task, what)

    def kill_all(self) -> None:
        """End every task with SIGKILL. Safe from any thread."""
        self.send(signal.SIGKILL)
        with self._reaping:  # what was not waited for keeps its number
            for task in (*self._tasks, *self._early):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(task, signal.SIGKILL)

    def _next(self) -> tuple[int, Stop | Ended] | None:
        """The next stop or end of any task; None when there is none left. This thread has no other children."""
        look = os.WEXITED | os.WSTOPPED | stops.WALL | stops.WNOTHREAD
        info = None
        while info is None:  # what has stopped may be killed between the two
            try:
                os.waitid(os.P_ALL, 0, look | os.WNOWAIT)
                with self._reaping:
                    info = os.waitid(os.P_ALL, 0, look | os.WNOHANG)
            except ChildProcessError:
                return None
        if info.si_code in (os.CLD_TRAPPED, os.CLD_STOPPED):
            return info.si_pid, Stop(info.si_status & 0xFF, info.si_status >> 8)
        return info.si_pid, Ended(info.si_status if info.si_code == os.CLD_EXITED else -info.si_status)

    def _go_on(self, task: int, number: int = 0) -> None:
        """On to the next call that the filter stops, or to the exit of the one that it makes."""
        followed = self._tasks.get(task)
        inside = followed is not None and (followed.entered or followed.own is not None)
        stops.request(func.PTRACE_SYSCALL if inside else func.PTRACE_CONT, task, 0, number)

    # -- stops -------------------------------------------------------------------------------------------------------

    def _stopped(self, task: int, stop: Stop) -> None:
        followed = self._tasks.get(task)
        if followed is None:
            self._early.add(task)
        elif stop.is_filtered or stop.is_syscall:
            self._at_call(task, followed)
        elif stop.event in _BIRTHS:
            self._made(_message(task), task)
            self._go_on(task)
        elif stop.is_exec:
            former = _message(task)
            self._tasks[task] = self._tasks.pop(former, followed)
            self._tasks[task].entered = False  # a thread's that took the first one's place is told by the event
            self._overseer.executed(task, former)
            self._go_on(task)
        elif stop.is_group_stop:
            stops.request(stops.PTRACE_LISTEN, task)
        elif stop.delivers and not (task == self.pid and self._is_ignored(stop.signal)):
            self._go_on(task, stop.signal)
        else:
            self._go_on(task)

    def _at_call(self, task: int, followed: _Followed) -> None:
        operation, arch, _, _, number, *args = _syscall_info(task)
        if operation == _SECCOMP:
            call = Call(number, arch, tuple(args))
            followed.entered = True
            injection = self._overseer.entering(task, call)
            if injection is not None:
                self._inject(task, followed, injection)
        elif operation == _EXIT:
            result = ctypes.c_long(number).value
            if followed.own is not None:
                registers, followed.own = followed.own, None
                self._overseer.injected(task, result)
                _again(task, registers)
            elif followed.entered and self._overseer.left(task, result):
                _again(task, stops.registers(task))
            followed.entered = False
        self._go_on(task)

    def _inject(self, task: int, followed: _Followed, injection: Injection) -> None:
        """The task's own call becomes another one, here at its entry; at its exit the own one is made again."""
        followed.own, registers = stops.registers(task), stops.registers(task)
        values = [value & _ALL for value in (*injection.args, *(0,) * (6 - len(injection.args)))]
        registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9 = values
        registers.orig_rax = injection.number
        stops.set_registers(task, registers)

    def _made(self, child: int, parent: int) -> None:
        if child in self._tasks:
            return
        self._tasks[child] = _Followed()
        self._overseer.born(child, parent)
        if child in self._early:
            self._early.discard(child)
            self._go_on(child)

    def _gone_for_good(self, task: int, end: Ended) -> None:
        self._early.discard(task)
        if self._tasks.pop(task, None) is not None:
            self._overseer.ended(task)
        if task == self.pid:
            self._over(end.status)
            self.first_ended.set()
        if not self._tasks:  # whose parent was killed before it could tell of them
            for child in tuple(self._early):
                with contextlib.suppress(ProcessLookupError):
                    self._made(child, task)


def _again(task: int, registers: stops.Registers) -> None:
    """Have the call of these registers made once more when the task goes on, as the kernel does after a signal."""
    registers.rip -= _SYSCALL_LENGTH
    registers.rax = registers.orig_rax
    stops.set_registers(task, registers)


def _message(task: int) -> int:
    word = ctypes.c_ulong()
    stops.request(func.PTRACE_GETEVENTMSG, task, 0, ctypes.addressof(word))
    return word.value


def _syscall_info(task: int) -> tuple[int, ...]:
    """The fields of struct ptrace_syscall_info at a stop. OSError; HostError where the kernel has no such request."""
    buffer = ctypes.create_string_buffer(_INFO.size)
    try:
        func.ptrace(PTRACE_GET_SYSCALL_INFO, task, _INFO.size, ctypes.addressof(buffer))
    except PtraceError as error:
        if error.errno == errno.EIO:
            raise HostError(
                "this kernel does not tell what a traced call is", "PTRACE_GET_SYSCALL_INFO is there from Linux 5.3 on"
            ) from error
        raise oserror(f"ptrace(PTRACE_GET_SYSCALL_INFO, {task})", errno=error.errno) from error
    return _INFO.unpack(buffer.raw)
