"""ptrace requests and what a tracee's stop says: what python-ptrace lacks since PTRACE_SEIZE (Linux 3.4).

Sources: ptrace(2), linux/ptrace.h, kernel/ptrace.c, kernel/exit.c (wait_task_stopped). Which stop means what to a
steered process is decided in `steer`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
from dataclasses import dataclass
from typing import Any

from ptrace import PtraceError
from ptrace.binding import func

from profiler.kernel.namespaces import oserror

# linux/ptrace.h
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_LISTEN = 0x4208
PTRACE_GETSIGMASK = 0x420A
PTRACE_SETSIGMASK = 0x420B
PTRACE_EVENT_SECCOMP = 7
PTRACE_EVENT_STOP = 128
PTRACE_O_TRACESECCOMP = 1 << PTRACE_EVENT_SECCOMP
PTRACE_O_EXITKILL = 1 << 20

# linux/wait.h, linux/signal.h
WNOTHREAD = 0x20000000  # only what this very thread traces
WALL = 0x40000000  # also what is no child of ours
_LOOK_SECONDS = 0.01
_SYSCALL_STOP = 0x80  # set in the signal by PTRACE_O_TRACESYSGOOD
_STOPPING = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})

Registers = Any  # struct user_regs_struct, as python-ptrace (which has no types) lays it out


@dataclass(frozen=True)
class Stop:
    """A stopped tracee: the signal it reports and the PTRACE_EVENT_* above it (0: none)."""

    signal: int
    event: int

    @property
    def is_syscall(self) -> bool:
        """At the entry or the exit of a system call."""
        return self.signal == signal.SIGTRAP | _SYSCALL_STOP

    @property
    def is_exec(self) -> bool:
        """It has become another program and has not yet run an instruction of it."""
        return bool(self.event == func.PTRACE_EVENT_EXEC)

    @property
    def is_exit(self) -> bool:
        """Its first thread is about to end: with the process, before it, or because another thread executes."""
        return bool(self.event == func.PTRACE_EVENT_EXIT)

    @property
    def is_group_stop(self) -> bool:
        """A stopping signal has taken effect on the whole process: it must stay stopped."""
        return self.event == PTRACE_EVENT_STOP and self.signal in _STOPPING

    @property
    def is_interrupt(self) -> bool:
        """PTRACE_INTERRUPT took effect, or a group-stop began or ended. No signal is involved."""
        return self.event == PTRACE_EVENT_STOP

    @property
    def is_filtered(self) -> bool:
        """A seccomp filter has answered RET_TRACE to the call that it is about to make."""
        return bool(self.event == PTRACE_EVENT_SECCOMP)

    @property
    def delivers(self) -> bool:
        """The tracee is about to receive `signal` (a signal-delivery-stop)."""
        return not self.event and not self.is_syscall


@dataclass(frozen=True)
class Ended:
    """A tracee that is no more: `status` as os.waitstatus_to_exitcode has it (-9: killed by SIGKILL)."""

    status: int


def wait(pid: int, *, reap: bool, exiting: bool = False) -> Stop | Ended:
    """Wait until the tracee `pid` of this thread stops or ends.

    `reap` False leaves an ended process for its parent to wait for (when that is us). `exiting` tells that its exit was
    announced (`Stop.is_exit`). ChildProcessError when this thread does not trace `pid` (any more).
    """
    # WNOWAIT consumes no stop, and hardly one needs to be: resuming overwrites it (ptrace_resume sets exit_code).
    flags = os.WEXITED | os.WSTOPPED | os.WNOWAIT | WALL | WNOTHREAD
    # Whoever waits for one pid is not woken when another thread executes and takes that pid over: de_thread in
    # fs/exec.c wakes the tracer after exchange_tids, and child_wait_callback then no longer finds the pid eligible.
    while (info := os.waitid(os.P_PID, pid, flags | (os.WNOHANG if exiting else 0))) is None:
        select.select([], [], [], _LOOK_SECONDS)
    if info.si_code in (os.CLD_TRAPPED, os.CLD_STOPPED):
        stop = Stop(info.si_status & 0xFF, info.si_status >> 8)
        if stop.is_exec:
            # This one must be consumed where the exec changed its pid: until then every request is taken for one to the
            # old process and answered with ESRCH (looks_like_a_spurious_pid in kernel/ptrace.c).
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | WALL | WNOTHREAD)
        return stop
    if reap:
        # What we trace and did not make: its parent sees the end only after we have.
        os.waitpid(pid, WALL | WNOTHREAD)
    return Ended(info.si_status if info.si_code == os.CLD_EXITED else -info.si_status)


def request(command: int, pid: int, address: int = 0, data: int = 0) -> None:
    """One ptrace request, by the thread that traces `pid`. OSError; ProcessLookupError when it is not stopped."""
    try:
        func.ptrace(command, pid, address, data & (1 << 64) - 1)
    except PtraceError as error:
        raise oserror(f"ptrace({command:#x}, {pid})", errno=error.errno) from error


def seize(pid: int, more: int = 0) -> None:
    """Attach to `pid` without stopping it. It gets SIGKILL when this thread ends, in whatever way; exec and exit are
    reported, and what the options `more` add."""
    options = PTRACE_O_EXITKILL | func.PTRACE_O_TRACEEXEC | func.PTRACE_O_TRACEEXIT | func.PTRACE_O_TRACESYSGOOD
    request(PTRACE_SEIZE, pid, 0, options | more)


def let_die(pid: int) -> None:
    """Let a killed tracee of this thread go on from the stop at its exit (PTRACE_O_TRACEEXIT). Quiet when it is not
    stopped, has ended, or is another thread's: that one ends with its thread (PTRACE_O_EXITKILL)."""
    with contextlib.suppress(OSError):
        request(func.PTRACE_CONT, pid)


def registers(pid: int) -> Registers:
    """The registers of a stopped tracee. Raises OSError."""
    values = func.ptrace_registers_t()
    request(func.PTRACE_GETREGS, pid, 0, ctypes.addressof(values))
    return values


def set_registers(pid: int, values: Registers) -> None:
    """Set the registers of a stopped tracee. Raises OSError."""
    request(func.PTRACE_SETREGS, pid, 0, ctypes.addressof(values))


def signal_mask(pid: int) -> int:
    """The blocked signals of a stopped tracee, bit 0 for signal 1. Raises OSError."""
    word = ctypes.c_uint64()
    request(PTRACE_GETSIGMASK, pid, ctypes.sizeof(word), ctypes.addressof(word))
    return word.value


def set_signal_mask(pid: int, mask: int) -> None:
    """Set the blocked signals of a stopped tracee. SIGKILL and SIGSTOP stay unblocked. Raises OSError."""
    word = ctypes.c_uint64(mask)
    request(PTRACE_SETSIGMASK, pid, ctypes.sizeof(word), ctypes.addressof(word))


def sent_from_within(pid: int) -> bool:
    """Whether the signal that a stopped tracee is about to receive was sent by a process of its own pid namespace.

    The kernel gives 0 as the sender's pid when it cannot be named there (__send_signal_locked, SEND_SIG_NOINFO).
    Raises OSError.
    """
    info = func.siginfo()
    request(func.PTRACE_GETSIGINFO, pid, 0, ctypes.addressof(info))
    # SI_USER, SI_TKILL and the like: si_pid lies where struct siginfo has it for SIGCHLD too.
    return bool(info.si_code <= 0 and info._sigchld.pid)
