"""Who belongs to the workload, for the time in which the kernel shows everybody's events."""

from __future__ import annotations

from collections.abc import Iterable

from profiler.witness.events import Exec, Fork, Raw, TaskExit


class Family:
    """The living tasks of the workload, known from its forks. `keep` leaves every event through until `alone` is set:
    up to then the kernel's own filter shows nobody else's."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self.alone = False

    def add(self, pid: int) -> None:
        """Count `pid`, and whatever it makes from now on, among the workload."""
        self._pids.add(pid)

    def keep(self, events: Iterable[Raw]) -> list[Raw]:
        """The workload's of `events`, which are in the order of time over all calls of this method."""
        pids = self._pids
        kept = []
        for event in events:
            ours = event.pid in pids
            if isinstance(event, Fork):
                if ours:
                    pids.add(event.child)
            elif isinstance(event, Exec):
                # The leader is gone by then, and the thread that executes takes its number (fs/exec.c, de_thread).
                ours = ours or event.old_pid in pids
                if ours:
                    pids.add(event.pid)
            elif isinstance(event, TaskExit):
                pids.discard(event.pid)
            if ours or not self.alone:
                kept.append(event)
        return kept
