"""One denied run as its session sees it: the overseen workload, who decides about it, and what was refused in it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from profiler import model
from profiler.kernel.bpf import Rule
from profiler.kernel.overseer import Call, Overseen
from profiler.tracer.denial.denier import Denier, NotDeniableError, as_notified
from profiler.tracer.denial.overseen import OverseenRun
from profiler.tracer.process import Callers
from profiler.tracer.recorder import Recorder
from profiler.witness.events import Event
from profiler.witness.tracefs import CheckWitness


@dataclass(frozen=True)
class Denying:
    """What a denied run begins with, and what it may be given beyond that, as names of capabilities."""

    granted: frozenset[str]
    grantable: frozenset[str]


class Denial:
    """One denied run. It reads the witness, and hands on to `feed` what that tells, on another thread.
    NotDeniableError without a witness."""

    def __init__(
        self,
        pid: int,
        denying: Denying,
        witness: CheckWitness | None,
        feed: Callable[[Sequence[Event]], None],
        recorder: Recorder,
        rules: Iterable[Rule],
    ) -> None:
        if witness is None:
            raise NotDeniableError("the kernel's capability checks cannot be seen here", "")
        self._recorder = recorder
        self._witness, self._feed = witness, feed
        self._read: queue.SimpleQueue[Sequence[Event] | None] = queue.SimpleQueue()
        self._feeder = threading.Thread(target=self._hand_on, name="feeder", daemon=True)
        self._failure: BaseException | None = None
        self._rules: dict[int, Rule] = {rule.number: rule for rule in rules}
        self._callers = Callers(pid)
        self._denier = Denier(
            pid,
            denying.granted,
            denying.grantable,
            look=self._look,
            callers=self._callers,
            going_on=self._going_on,
        )
        self._run = OverseenRun(pid, self._denier)

    def _look(self) -> None:
        events = self._witness.present()
        if events:
            self._denier.feed(events)
            self._read.put(events)
        self._recorder.look_around()

    def _hand_on(self) -> None:
        """On a thread of its own, since a look at an executed file may have to wait for the workload: for a file system
        in user space whose server the overseer has stopped."""
        try:
            while (events := self._read.get()) is not None:
                self._feed(events)
        except BaseException as error:  # handed on to whoever finishes the run
            self._failure = error

    def _going_on(self, task: int, call: Call) -> None:
        """Record the call if it is one that is notified in any traced run."""
        rule = self._rules.get(call.number)
        if not call.native or (rule is not None and rule.holds(call.args)):
            self._recorder.answer(as_notified(task, call))

    def finished(self) -> model.Denial:
        """What the run was denied, after its end. Raises what went wrong with what the witness read."""
        if self._failure is not None:
            raise self._failure
        return model.Denial(tuple(self._denier.refusals), frozenset(self._denier.withheld))

    def begin(self, argv: Sequence[str], env: Sequence[str], executed: Callable[[], None]) -> Overseen:
        """Execute the workload; its first process. See `OverseenRun.begin`."""
        self._feeder.start()
        self._run.begin(argv, env, executed)
        return self._run.steered

    def hold(self) -> None:
        """Wait for the end of the workload's first process."""
        self._run.hold()

    def wait(self, seconds: float) -> bool:
        """Wait until its last task is gone. False when the time is up."""
        return self._run.wait(seconds)

    def finish(self) -> None:
        """End what is left of the workload. Idempotent."""
        self._run.finish()
        self._read.put(None)
        if self._feeder.ident is not None:
            self._feeder.join()
        self._callers.close()
