"""One seized process: seize it, make system calls in it while it is the gate, hold it as its anchor, let it go.

Only this one process is traced, never its children: they can be traced by whatever debugs them. It dies with us
(PTRACE_O_EXITKILL). What it is made to do, and in which order, is decided in `steer` and above.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from pathlib import Path
from typing import Self

from ptrace.binding import func

from profiler.errors import HostError, WorkloadError
from profiler.kernel import gate, namespaces, stops
from profiler.kernel.stops import Ended, Stop

# linux/errno.h, which user space never sees: a signal broke the call off, to be made again
_RESTART = frozenset({-512, -513, -514, -516})  # ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK
_FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS})
_ALL = (1 << 64) - 1


class TraceeEndedError(WorkloadError):
    """The process ended while it was steered. `status` as os.waitstatus_to_exitcode has it, None if nobody knows."""

    def __init__(self, pid: int, status: int | None) -> None:
        super().__init__(
            f"process {pid} ended before its workload began (status {'unknown' if status is None else status})",
            "something killed the container or command while it was being prepared; run it again",
        )
        self.status = status


class Tracee:
    """One seized process. Every method but `kill` belongs to the thread that seized it, which must outlive the process:
    the kernel takes requests from no other thread and kills the process when that thread ends.

    When the process is a child of ours, its end is left for whoever waits for it, and nobody may wait for it earlier:
    a waiting thread would take its stops. Otherwise its parent sees the end as soon as `hold` or `kill` has.
    """

    _options = 0  # of ptrace, beyond those of `stops.seize`

    def __init__(self, pid: int) -> None:
        """For `seize` only."""
        self.pid = pid
        self.status: int | None = None
        self._thread = threading.get_ident()
        self._lock = threading.Lock()  # `kill` may come from another thread while the pidfd is closed
        self._pidfd: int | None = namespaces.pidfd_open(pid)
        self._attached = False
        self._ended = False
        self._exiting = False
        self._stop: Stop | None = None  # where it is stopped; None: it runs
        self._is_child = _status_field(pid, "PPid") == [str(os.getpid())]
        self._registers: stops.Registers = None
        self._at_gate = False
        self._steering = False
        self._mask: int | None = None
        self._pending: list[int] = []
        self.interrupted: float | None = None  # when it last received SIGINT from outside its pid namespace (monotonic)

    @classmethod
    def seize(cls, pid: int) -> Self:
        """Attach to `pid`, a child or not, and stop it. Signals sent to it wait until it is let go.

        Raises TraceeEndedError when it is gone, HostError when it may not be traced.
        """
        try:
            tracee = cls(pid)
        except ProcessLookupError as error:
            raise TraceeEndedError(pid, None) from error
        try:
            tracee._attach()
            tracee._interrupt()
            tracee._registers = stops.registers(pid)
            # Blocked, they stay queued with all they carry, and survive exec. Linux 3.11; else they are sent again.
            with contextlib.suppress(OSError):
                tracee._mask = stops.signal_mask(pid)
                stops.set_signal_mask(pid, _ALL)
            tracee._steering = True
        except BaseException:
            tracee.detach()
            raise
        return tracee

    # ---------------------------------------------------------------------------------------------------------------
    # Making it do things

    def syscall(self, number: int, *args: int) -> int:
        """Make the gate call `number` with up to six arguments; returns the kernel's answer, negative errno on failure.

        Blocks as long as the call does, with the interpreter free for other threads (one of them may have to answer
        the call's seccomp notification). Raises TraceeEndedError; HostError when the process is not at the gate.
        """
        result = self._call(number, *args)
        if result is None:
            raise RuntimeError("the tracee has executed another program: use execute()")
        return result

    # ---------------------------------------------------------------------------------------------------------------
    # Letting it run

    def hold(self) -> int | None:
        """Let it run and stay attached until it ends. Returns its status as os.waitstatus_to_exitcode has it.

        Signals, job control and further execs go on as if nobody was attached. None: it ended in the moment when
        another thread's exec had ended our tracing (de_thread in fs/exec.c), and is not our child.
        """
        self._belongs()
        if self._ended:
            return self.status
        if gate.is_at_gate(self.pid):
            raise RuntimeError("execute() comes first: a gate that is held never ends")
        self._let_signals_through()
        stop: Stop | Ended | None = self._stop
        while isinstance(stop, Stop):
            if stop.is_group_stop:
                self._resume(stops.PTRACE_LISTEN)  # it stays stopped, as its job control wants
            elif stop.delivers and not self._is_ignored(stop.signal):
                if stop.signal == signal.SIGINT and not self._sent_from_within():
                    self.interrupted = time.monotonic()
                self._resume(func.PTRACE_CONT, stop.signal)
            else:
                self._resume(func.PTRACE_CONT)
            stop = self._wait()
        return self.status

    def send(self, number: int) -> None:
        """Send it a signal. Safe from any thread and after its end."""
        with self._lock:
            if self._pidfd is not None:
                with contextlib.suppress(ProcessLookupError):
                    namespaces.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End it with SIGKILL. Safe from any thread and after its end; on the tracing thread, returns after its end."""
        self.send(signal.SIGKILL)
        if threading.get_ident() != self._thread or not self._attached:
            return
        while isinstance(self._wait(), Stop):
            self._resume(func.PTRACE_CONT)  # a stop from before the signal

    def detach(self) -> None:
        """Let it go on untraced: a gate pauses again, a workload goes on. Idempotent; nothing when it has ended."""
        self._belongs()
        with contextlib.suppress(TraceeEndedError, ProcessLookupError):
            if self._attached:
                if self._stop is None:
                    self._interrupt()
                if self._at_gate:
                    self._registers.rip = gate.START_ADDRESS
                    self._registers.orig_rax = _ALL
                    stops.set_registers(self.pid, self._registers)
                self._unblock()
                stops.request(func.PTRACE_DETACH, self.pid)
                self._attached = False
                self._send_pending()
        self._close()

    # ---------------------------------------------------------------------------------------------------------------
    # Requests and stops

    def _attach(self) -> None:
        try:
            stops.seize(self.pid, self._options)
        except ProcessLookupError as error:
            raise TraceeEndedError(self.pid, None) from error
        except OSError as error:
            if _status_field(self.pid, "State")[:1] in ([], ["Z"], ["X"]):  # ptrace_attach answers EPERM there
                raise TraceeEndedError(self.pid, None) from error
            raise HostError(
                f"process {self.pid} may not be traced: {error.strerror}",
                "run as root with CAP_SYS_PTRACE, and with no other tracer on that process (Yama: "
                "kernel.yama.ptrace_scope must not be 3)",
            ) from error
        self._attached = True

    def _interrupt(self) -> None:
        """Stop the running tracee; what it was about to receive is remembered."""
        self._ask_to_stop()
        while not (stop := self._next_stop()).is_interrupt:
            if stop.delivers:
                self._pending.append(stop.signal)
            # Any other stop has taken the request away (ptrace_stop in kernel/signal.c clears JOBCTL_TRAP_STOP). So
            # does the one that an exec ends with, and memory looks like the gate's before that.
            self._ask_to_stop()
            self._resume(func.PTRACE_CONT)

    def _ask_to_stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # ended: the wait says so
            stops.request(stops.PTRACE_INTERRUPT, self.pid)

    def _call(self, number: int, *args: int) -> int | None:
        """A system call in the gate; None when it was an exec that succeeded."""
        self._belongs()
        if self._ended:
            raise TraceeEndedError(self.pid, self.status)
        if not self._at_gate:
            self._check_at_gate()
        values = [value & _ALL for value in (*args, *(0,) * (6 - len(args)))]
        while True:
            registers = self._registers
            registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9 = values
            registers.rax, registers.rip = number, gate.SYSCALL_ADDRESS
            registers.orig_rax = _ALL  # no call is being left: the kernel has none to restart
            stop = self._set_and_run(registers)
            if stop.is_exec:
                self._at_gate = False
                self._let_signals_through()
                return None
            try:
                result = ctypes.c_long(stops.registers(self.pid).rax).value
            except ProcessLookupError as error:
                raise self._gone() from error
            if result not in _RESTART:
                return result

    def _check_at_gate(self) -> None:
        try:
            stops.registers(self.pid)
        except ProcessLookupError as error:
            raise self._gone() from error
        if not self._steering or not gate.is_at_gate(self.pid):
            raise HostError(
                f"process {self.pid} is not at the gate", "wait until the engine has executed it (gate.is_at_gate)"
            )
        self._at_gate = True

    def _set_and_run(self, registers: stops.Registers) -> Stop:
        try:
            stops.set_registers(self.pid, registers)
        except ProcessLookupError as error:
            raise self._gone() from error
        self._resume(func.PTRACE_SYSCALL)
        self._syscall_stop()
        self._resume(func.PTRACE_SYSCALL)
        return self._syscall_stop()

    def _gone(self) -> TraceeEndedError:
        """It was killed while it was stopped: wait for its end and say so."""
        self._stop = None
        while isinstance(self._wait(), Stop):
            self._resume(func.PTRACE_CONT)
        return TraceeEndedError(self.pid, self.status)

    def _syscall_stop(self) -> Stop:
        """The next stop at a system call's entry or exit, or at an exec."""
        while True:
            stop = self._next_stop()
            if stop.is_syscall or stop.is_exec:
                return stop
            if stop.delivers and stop.signal in _FAULTS:
                # Blocked as all are: only the kernel forces one through, for an instruction that failed.
                raise HostError(
                    f"process {self.pid} got {signal.Signals(stop.signal).name} at the gate",
                    "the container's seccomp profile must not answer with SCMP_ACT_TRAP while it is profiled",
                )
            if stop.delivers:
                self._pending.append(stop.signal)
            self._resume(func.PTRACE_SYSCALL)

    def _next_stop(self) -> Stop:
        stop = self._wait()
        if not isinstance(stop, Stop):
            raise TraceeEndedError(self.pid, self.status)
        return stop

    def _wait(self) -> Stop | Ended | None:
        """The next stop or the end; None when it ended unseen."""
        while True:
            try:
                stop = stops.wait(self.pid, reap=not self._is_child, exiting=self._exiting)
            except ChildProcessError:
                if self._attach_again():
                    continue
                return None
            if isinstance(stop, Stop):
                self._stop = stop
                self._exiting = self._exiting or stop.is_exit
            else:
                self._over(stop.status)
            return stop

    def _attach_again(self) -> bool:
        """Another thread has executed a program and so replaced the one that we traced, under the same pid."""
        self._attached = False
        try:
            assert self._pidfd is not None
            namespaces.pidfd_send_signal(self._pidfd, 0)  # it is the same process, not a later one
            stops.seize(self.pid, self._options)
            self._attached, self._exiting = True, False
            return True
        except OSError:
            status = None
            if self._is_child:
                ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
                assert ended is not None
                status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            self._over(status)
            return False

    def _resume(self, command: int, number: int = 0) -> None:
        # Killed while it was stopped: the next wait reports the end.
        with contextlib.suppress(ProcessLookupError):
            stops.request(command, self.pid, 0, number)
        self._stop = None

    def _is_ignored(self, number: int) -> bool:
        """SIGSTOP from within its pid namespace does nothing to an init, which only its tracing would make it stop
        (sig_ignored in kernel/signal.c lets a traced init's signals pass)."""
        return number == signal.SIGSTOP and _is_init(self.pid) and self._sent_from_within()

    def _sent_from_within(self) -> bool:
        try:
            return stops.sent_from_within(self.pid)
        except OSError:
            return False

    def _let_signals_through(self) -> None:
        self._unblock()
        self._send_pending()
        self._steering = False

    def _unblock(self) -> None:
        if self._mask is not None:
            with contextlib.suppress(ProcessLookupError):
                stops.set_signal_mask(self.pid, self._mask)
            self._mask = None

    def _send_pending(self) -> None:
        pending, self._pending = self._pending, []
        for number in pending:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _over(self, status: int | None) -> None:
        self.status = status
        self._ended, self._attached = True, False
        self._close()

    def _close(self) -> None:
        with self._lock:
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None

    def _belongs(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("a steered process belongs to the thread that seized it")


def _status_field(pid: int, name: str) -> list[str]:
    """The words of one line of /proc/PID/status; none when the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return value.split()
    return []


def _is_init(pid: int) -> bool:
    """Whether `pid` is the first process of its pid namespace, and that is not ours."""
    numbers = _status_field(pid, "NSpid")
    return len(numbers) > 1 and numbers[-1] == "1"
