"""A workload that does not end by itself: how long it lives, and what is asked of it before it is stopped.

The same for a traced run and for a rerun, in every sandbox; only waiting and looking differ, and those are given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from profiler.model import Moved, Outcome, Stopped

LOOK_SECONDS = 0.2  # between two looks at a health check's answer: the engine tells nobody when it changes
END_SECONDS = 1.0  # for the engine's client to end once its container has ended
# An engine counts the checks that fail while a service starts, unless it is told how long that may take.
STARTS_SLOWLY = "watched it starts more slowly: docker run --health-start-period 60s gives it time"
HEALTHY, UNHEALTHY = "healthy", "unhealthy"  # the engine's own words

Ask = Callable[[Moved], str | None]  # None: all is well; otherwise what is wrong, in a few words


class Running(Protocol):
    """A run that goes on."""

    @property
    def moved(self) -> Moved:
        """See `Outcome.moved`."""

    def health(self) -> str:
        """`starting`, `healthy` or `unhealthy` as the engine says; empty where it makes no health check."""

    def inside(self, command: str) -> Outcome:
        """Run a shell command beside the workload, in its own sandbox, and return how it ended."""


@dataclass(frozen=True)
class Service:
    """When a run is stopped, and what must be true then.

    `seconds`: after this time, or with `until_healthy` as soon as the engine calls it healthy, which must be within
    `seconds` (None: without a limit). `settle` is how many seconds it goes on after that. `healthy`: its health check
    must pass at the end. `check` is asked then, and `check_inside` run in the sandbox.
    """

    seconds: float | None
    until_healthy: bool = False
    settle: float = 0.0
    healthy: bool = False
    check: Ask | None = None
    check_inside: str | None = None

    def watch(self, running: Running, ended: Callable[[float], bool]) -> Stopped | None:
        """Wait until the run is to be stopped, and ask what must be true then; None when it ended by itself before.

        `ended(seconds)` waits so long at most for the run's end and tells whether it came.
        """
        deadline = None if self.seconds is None else time.monotonic() + self.seconds
        if not self.until_healthy:
            assert deadline is not None, "a service has a time, or a health check"
            if ended(_left(deadline)):
                return None
            return self._asked(running)
        while True:
            health = running.health()
            if health == HEALTHY:
                return None if ended(self.settle) else self._asked(running)
            if health == UNHEALTHY:  # the engine says so of what has ended, too
                return None if ended(END_SECONDS) else Stopped("its health check fails", hint=STARTS_SLOWLY)
            if deadline is not None and not _left(deadline):
                return Stopped(f"it was not healthy within {self.seconds:.0f} s")
            if ended(LOOK_SECONDS):
                return None

    def _asked(self, running: Running) -> Stopped:
        health = running.health()
        healthy = health == HEALTHY
        if health == UNHEALTHY or (self.healthy and not healthy):
            hint = STARTS_SLOWLY if health == UNHEALTHY else ""
            return Stopped(f"its health check does not pass ({health or 'there is none'})", hint=hint)
        if self.check_inside is not None:
            done = running.inside(self.check_inside)
            if done.exit_code != 0:
                return Stopped(f"the check inside exited with {done.exit_code}{done.last_words()}", healthy)
        return Stopped((self.check(running.moved) or "") if self.check is not None else "", healthy)


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
