"""`trace(run) -> Trace`: the whole life of one traced run, from the gate to the end of its last process.

Four threads: the caller's steers and then holds the workload's first process (all ptrace requests come from one
thread), the listener's answers notified calls, the witness's reads the kernel's checks, and the stopper's ends what
shall not go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Final, Self

from profiler.catalogue.calls import FOREIGN, catalogue, every_number
from profiler.catalogue.paths import OPENS_FOR_WRITING
from profiler.errors import HostError
from profiler.harness.interface import Service, TracedRun
from profiler.kernel.bpf import RET_TRACE, assemble
from profiler.kernel.capabilities import sets_of
from profiler.kernel.notify import Listener
from profiler.kernel.overseer import Overseen
from profiler.kernel.steer import Steered
from profiler.model import Called, Outcome, Process, Stopped, Trace
from profiler.signals import Ended
from profiler.tracer.denial.denial import Denial, Denying
from profiler.tracer.devices import DeviceWatch
from profiler.tracer.executed import ExecutedFiles
from profiler.tracer.ledger import Ledger
from profiler.tracer.process import Callers
from profiler.tracer.rawcalls import RawCalls
from profiler.tracer.recorder import Progress, Recorder
from profiler.tracer.stopper import STOP_SECONDS, Stopper, broken_off
from profiler.tracer.sysctls import Sysctls
from profiler.tracer.system import SystemWrites
from profiler.witness.called import CallWitness
from profiler.witness.events import Event, Exec, Fork
from profiler.witness.tracefs import CheckWitness

LINGER_SECONDS: Final = 10.0  # for processes that outlive the run itself
# The interpreter's switch interval while a run is traced: a notified call waits for the listener's thread, which waits
# for whichever thread holds the interpreter. The default of 5 ms is a hundred times what a stop costs.
SWITCH_SECONDS: Final = 0.0002
# Calls that steering itself makes before anybody answers the listener: they must not be notified.
STEERING: Final = frozenset({"close"})
NR_PRCTL: Final = 157  # asm/unistd_64.h
PR_SET_NO_NEW_PRIVS: Final = 38  # linux/prctl.h

Interruptible = Callable[[Callable[[], None]], AbstractContextManager[object]]
"""Makes a block in which the user's first interruption calls what is given (`signals.first_interrupt`)."""


def trace(
    run: TracedRun,
    *,
    extra_calls: frozenset[str] = frozenset(),
    timeout: float | None = None,
    service: Service | None = None,
    on_progress: Progress | None = None,
    interruptible: Interruptible = contextlib.nullcontext,
    every_call: bool = False,
    denying: Denying | None = None,
) -> Trace:
    """Trace `run`, which is held at its gate, to its end, and close it.

    `extra_calls` (x86-64 names) are notified whatever their arguments, beside the catalogue's. A `service` is stopped
    as its engine would when it says so; any other workload after `timeout` seconds, and then the trace counts a loss.
    `on_progress(seconds, calls)` is called about once a second, on another thread. An interruption while the workload
    runs (`interruptible`) ends the run and not us; but a workload that dies of it takes us along (`Ended`).
    `every_call`: the trace names every system call that was made (`Trace.called`), whether or not it is stopped.
    `denying`: the workload has no capability in effect but those named there, and is given each that it is refused for
    (`Trace.denial`); NotDeniableError where it cannot be run so.
    Raises ProfilerError (ExecutionError, TraceeEndedError, HostError) and whatever a thread of ours failed with; the
    workload is then killed and nothing of it is left.
    """
    with ExitStack() as stack:
        stack.callback(run.close)
        stack.enter_context(_quick_switches())
        session = stack.enter_context(_Session(run, extra_calls - STEERING, on_progress, every_call, denying))
        session.steer()
        outcome = session.live(timeout, service, interruptible)
        return session.trace(outcome)


@contextlib.contextmanager
def _quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class _Family:
    """The workload's tasks as the witness saw them: who belongs to it, and what a task that is gone had executed."""

    def __init__(self, anchor: int) -> None:
        self.pids = {anchor}
        self.programs: dict[int, str] = {}

    def feed(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Fork):
                self.pids.add(event.child)
                if event.pid in self.programs:
                    self.programs[event.child] = self.programs[event.pid]
            elif isinstance(event, Exec):
                self.programs[event.pid] = event.filename


class _Session:
    """What one traced run holds. A context manager: leaving it with an exception kills the workload."""

    def __init__(
        self,
        run: TracedRun,
        extra_calls: frozenset[str],
        on_progress: Progress | None,
        every_call: bool,
        denying: Denying | None,
    ) -> None:
        self._run = run
        self._pid = run.caught.pid
        self._extra_calls = extra_calls
        self._on_progress = on_progress
        self._stack = ExitStack()
        self._steered: Steered | None = None
        self._witness: CheckWitness | None = None
        self._every_call = every_call
        self._denying = denying
        self._denial: Denial | None = None
        self._calls: CallWitness | None = None
        self._losses: dict[str, int] = {}
        self._notes: list[str] = []
        self._family = _Family(self._pid)
        self._knows_family = False
        self._stopper: Stopper | None = None
        self._interrupted: float | None = None
        self._stopped: Stopped | None = None
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._began = time.monotonic()
        self._seconds = 0.0

    def __enter__(self) -> Self:
        try:
            self._prepare()
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._stack.close()
            return
        self._abandon()
        failure = self._recorder.failure
        if failure is not None and failure is not error:  # what went wrong first
            raise failure

    def _abandon(self) -> None:
        """Kill the workload before its calls go unanswered, then take everything down."""
        self._over.set()
        try:
            self._kill()
        finally:
            self._stack.close()

    def _kill(self) -> None:
        """End the first process at once, and with it the container; safe from any thread."""
        if self._steered is not None:
            self._steered.kill()
        self._run.stop()

    # -- setting up --------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._steered = steered = (Overseen if self._denying else Steered).seize(self._pid)
        self._stack.callback(steered.detach)
        executed = self._stack.enter_context(ExecutedFiles(self._pid))
        self._witness = witness = self._open_witness()
        absent = witness.absent if witness else frozenset()
        self._ledger = Ledger(self._pid, carried=executed.checks, absent=absent)
        known = catalogue()
        foreign = known.foreign_numbers()
        if self._every_call:
            self._calls = self._stack.enter_context(CallWitness())
            foreign = every_number(FOREIGN)  # an event of raw_syscalls does not say whose table it is from
        rules = known.rules(self._extra_calls)
        self._callers = self._stack.enter_context(Callers(self._pid))
        self._devices = self._stack.enter_context(DeviceWatch(self._pid, self._who))
        self._sysctls = self._stack.enter_context(Sysctls(self._pid))
        writable = steered.make_writable(self._run.caught.system)
        self._system = self._stack.enter_context(SystemWrites(self._pid, writable))
        self._raw = RawCalls(absent, witnessed=witness is not None)
        self._allow_filter(steered)
        listener = None
        if isinstance(steered, Overseen):
            stopping = known.stopping_rules(self._extra_calls)
            steered.stop_at(assemble(stopping, action=RET_TRACE, foreign_numbers=foreign))
        else:
            listener = Listener(steered.install_filter(assemble(rules, foreign_numbers=foreign)))
        self._recorder = Recorder(
            listener,
            self._ledger,
            self._raw,
            self._callers,
            self._devices,
            self._system,
            follow=witness.follow if witness else None,
            on_failure=self._kill,
            on_progress=self._on_progress,
        )
        self._stack.callback(self._recorder.stop)
        if listener is not None:
            self._recorder.start()
        if self._denying is not None:
            self._denial = Denial(self._pid, self._denying, witness, self._feed, self._recorder, rules)
            self._stack.callback(self._denial.finish)

    def _open_witness(self) -> CheckWitness | None:
        try:
            calls = catalogue().calls.keys() | self._extra_calls
            return self._stack.enter_context(CheckWitness(calls, denied=self._denying is not None))
        except HostError as error:
            self._losses["no_kernel_witness"] = 1
            self._notes.append(f"the kernel's capability checks are not seen: {error.message}")
            return None

    def _allow_filter(self, steered: Steered) -> None:
        """Without CAP_SYS_ADMIN a filter takes no_new_privs (seccomp_prepare_filter in kernel/seccomp.c), which takes
        the effect of set-user-ID bits and file capabilities away."""
        if "SYS_ADMIN" in sets_of(self._pid).effective:
            return
        if steered.syscall(NR_PRCTL, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            self._losses["no_new_privs"] = 1
            self._notes.append("traced without SYS_ADMIN, so set-user-ID programs and file capabilities had no effect")

    def _who(self, pid: int) -> Process:
        before = self._callers.remembered(pid)
        now = self._callers.of(pid)
        return now if now.exe or before is None else before

    # -- running -----------------------------------------------------------------------------------------------------

    def steer(self) -> None:
        """Bring the gate to the workload's first instruction. What happens before is answered but not recorded."""
        assert self._steered is not None
        caught = self._run.caught
        self._steered.reduce(caught.credentials, caught.capabilities)
        if self._witness is not None:
            self._witness.arm(self._pid)
            self._witness.only_awaited(self._raw.awaiting)
        if self._denial is not None:
            self._steered.detach()  # it is seized anew by the thread that will oversee it
            self._steered = self._denial.begin(caught.argv, caught.env, self._executed)
            return
        if self._witness is not None:
            self._witness.start(self._feed)
        self._steered.execute(caught.argv, caught.env)
        self._executed()

    def _executed(self) -> None:
        """The workload is stopped before its first instruction."""
        if self._calls is not None:
            self._calls.start(self._pid, self._callers.of(self._pid).exe, self._recorder.i386_calls)
        self._recorder.record()
        self._began = time.monotonic()

    def _feed(self, events: Sequence[Event]) -> None:
        self._ledger.feed(events)
        self._raw.feed(events)
        self._family.feed(events)

    def live(self, timeout: float | None, service: Service | None, interruptible: Interruptible) -> Outcome:
        """Hold the workload until its last process has ended."""
        assert self._steered is not None
        deadline = None if timeout is None or service is not None else self._began + timeout
        if service is not None:
            self._attend(service)
        self._stopper = stopper = Stopper(self._run, self._steered, deadline)
        self._stack.callback(stopper.finish)
        with interruptible(stopper.interrupt):
            stopper.start()
            (self._denial or self._steered).hold()
            self._over.set()
            interrupted = stopper.interrupted(time.monotonic())
            self._raise_failure()
            outcome = self._run.wait(deadline)
            patience = LINGER_SECONDS if deadline is None else max(LINGER_SECONDS, _left(deadline))
            if not (self._denial or self._recorder).wait(patience):
                self._losses["outlived"] = 1
                self._notes.append("processes of the workload outlived it and were not watched to their end")
            if self._denial is not None:
                self._denial.finish()
            stopper.finish()
        if stopper.timed_out or outcome.timed_out:
            self._losses["timeout"] = 1
        if interrupted is not None:
            if broken_off(self._steered.status, outcome.exit_code):
                raise Ended(signal.SIGINT)
            self._interrupted = interrupted - self._began
        self._seconds = time.monotonic() - self._began
        self._raise_failure()
        return outcome

    def _attend(self, service: Service) -> None:
        """Begin to watch the service on a thread of its own, which stops the run when it says so."""
        steered = self._steered
        assert steered is not None

        def attend() -> None:
            try:
                self._stopped = service.watch(self._run.running, self._over.wait)
                if self._stopped is not None:
                    self._run.stop()
                    if self._over.wait(STOP_SECONDS):
                        return
            except BaseException as error:  # handed on to whoever waits for the run
                self._failure = error
            if not self._over.is_set():
                steered.kill()

        thread = threading.Thread(target=attend, name="service", daemon=True)
        self._stack.callback(thread.join)
        thread.start()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._stopper is not None and self._stopper.failure is not None:
            raise self._stopper.failure
        if self._recorder.failure is not None:
            raise self._recorder.failure

    # -- what it showed ----------------------------------------------------------------------------------------------

    def trace(self, outcome: Outcome) -> Trace:
        """Take everything down and tell what was seen. Raises what the witness's thread failed with."""
        self._recorder.stop()
        self._raise_failure()
        if self._witness is not None:
            self._witness.stop()
            if self._denial is not None:  # the witness had no thread of its own
                self._feed(self._witness.read(final=True))
            lost = self._witness.losses()
            self._losses.update(lost)
            self._knows_family = not lost
        observations, processes = self._ledger.finish()
        observations += self._system.finish(self._complete)
        devices = self._devices.finish(self._complete)
        self._losses.update(self._devices.losses())
        return Trace(
            observations,
            devices,
            self._raw.finish(),
            {name: count for name, count in self._losses.items() if count},
            outcome.exit_code,
            self._seconds,
            processes,
            (*self._notes, *self._recorder.notes),
            self._interrupted,
            self._stopped,
            outcome.files,
            self._called(),
            self._sysctls.values(one for one in observations if one.call in OPENS_FOR_WRITING),
            self._denial.finished() if self._denial is not None else None,
            self._system.written(),
        )

    def _called(self) -> Called | None:
        if self._calls is None:
            return None
        return dataclasses.replace(self._calls.finish(), i386=self._recorder.i386)

    def _complete(self, process: Process) -> Process | None:
        """Who used a device: None for a process that is not the workload's (a node may be shared with the host)."""
        if self._knows_family and process.pid not in self._family.pids:
            return None
        if process.exe:
            return process
        return Process(process.pid, self._family.programs.get(process.pid, ""))


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
