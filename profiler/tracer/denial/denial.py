"""One denied run as its session sees it: the overseen workload, who decides about it, and what was refused in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from profiler import model
from profiler.kernel.overseer import Overseen
from profiler.tracer.denial.denier import Denier, NotDeniableError
from profiler.tracer.denial.overseen import OverseenRun
from profiler.tracer.process import Callers
from profiler.witness.events import Event
from profiler.witness.tracefs import CheckWitness


@dataclass(frozen=True)
class Denying:
    """What a denied run begins with, and what it may be given beyond that, as names of capabilities."""

    granted: frozenset[str]
    grantable: frozenset[str]


class Denial:
    """One denied run. `begin`, `hold` and `finish` are the session's, `feed` whoever reads the witness.
    NotDeniableError without a witness."""

    def __init__(
        self,
        pid: int,
        denying: Denying,
        witness: CheckWitness | None,
        feed: Callable[[Sequence[Event]], None],
        passed_over: set[int],
    ) -> None:
        if witness is None:
            raise NotDeniableError("the kernel's capability checks cannot be seen here", "")
        self._callers = Callers(pid)
        self._denier = Denier(
            pid,
            denying.granted,
            denying.grantable,
            look=lambda: feed(witness.present()),
            callers=self._callers,
            passed_over=passed_over,
        )
        self._run = OverseenRun(pid, self._denier)

    def finished(self) -> model.Denial:
        """What the run was denied, after its end."""
        return model.Denial(tuple(self._denier.refusals), frozenset(self._denier.withheld))

    def feed(self, events: Sequence[Event]) -> None:
        """See `Denier.feed`."""
        self._denier.feed(events)

    def begin(self, argv: Sequence[str], env: Sequence[str], executed: Callable[[], None]) -> Overseen:
        """Execute the workload; its first process. See `OverseenRun.begin`."""
        self._run.begin(argv, env, executed)
        return self._run.steered

    def hold(self) -> None:
        """Wait for the end of the workload's first process."""
        self._run.hold()

    def finish(self) -> None:
        """End what is left of the workload. Idempotent."""
        self._run.finish()
        self._callers.close()
