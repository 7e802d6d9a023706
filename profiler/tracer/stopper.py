"""Ends a traced run from outside: when its time is up, when it is interrupted, or when its engine has gone away."""

from __future__ import annotations

import queue
import signal
import threading
import time
from typing import Final

from profiler.errors import HostError, ProfilerError
from profiler.harness.interface import TracedRun
from profiler.kernel.dispositions import caught_and_ignored
from profiler.kernel.steer import Steered

LOOK_SECONDS: Final = 1.0  # between two looks whether the engine is still there
SEEN_SECONDS: Final = 0.3  # for an interruption to reach the workload by itself, from the terminal
PATIENCE_SECONDS: Final = 2.0  # for an interrupted workload to end before its engine is asked to stop it
STOP_SECONDS: Final = 15.0  # for a stopped one: an engine's grace of ten seconds, and its work
AT_ONCE: Final = 12.0  # seconds after an interruption within which an end counts as brought about by it


class Stopper:
    """A thread beside one traced run, whose first process is `steered`.

    `deadline` is on the monotonic clock, in seconds. `timed_out` tells that it passed; `failure` is set when the engine
    went away. A run that does not end when its engine stops it is killed.
    """

    def __init__(self, run: TracedRun, steered: Steered, deadline: float | None) -> None:
        self._run = run
        self._steered = steered
        self._deadline = deadline
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: interrupt; False: the run is over
        self._thread = threading.Thread(target=self._watch, name="stopper", daemon=True)
        self._asked: float | None = None
        self.timed_out = False
        self.failure: HostError | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def interrupt(self) -> None:
        """End the run as Ctrl-C would; returns at once, and may be called by a signal's handler."""
        self._orders.put(True)

    def finish(self) -> None:
        """The run is over: end the thread. Idempotent."""
        self._orders.put(False)
        if self._thread.ident is not None:
            self._thread.join()

    def interrupted(self, ended: float) -> float | None:
        """When the run was interrupted (monotonic seconds) so that it `ended`; None when it ended by itself.

        An interruption may come from here, or from the terminal to the workload alone.
        """
        if self._asked is not None:
            return self._asked
        felt = self._steered.interrupted
        return felt if felt is not None and ended - felt < AT_ONCE else None

    def _watch(self) -> None:
        while True:
            try:
                interrupted = self._orders.get(timeout=self._patience())
            except queue.Empty:
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    self.timed_out = True
                    self._stop()
                    return
                if self._run.lost():
                    self.failure = HostError("the engine went away while the workload ran", "start it and run again")
                    self._steered.kill()
                    return
                continue
            if interrupted:
                self._asked = time.monotonic()
                self._interrupt()
            return

    def _patience(self) -> float:
        left = LOOK_SECONDS if self._deadline is None else self._deadline - time.monotonic()
        return max(0.0, min(LOOK_SECONDS, left))

    def _interrupt(self) -> None:
        """As a terminal would, and where that ends nothing as the engine stops its workloads."""
        began = time.monotonic()
        if self._over_within(SEEN_SECONDS):
            return
        felt = self._steered.interrupted
        reached = felt is not None and felt > began - SEEN_SECONDS
        if not reached and _takes_interrupts(self._steered.pid):
            self._steered.send(signal.SIGINT)
            reached = True
        if not reached or not self._over_within(PATIENCE_SECONDS):
            self._stop()

    def _stop(self) -> None:
        try:
            self._run.stop()
        except ProfilerError:  # whoever should stop it cannot: the kernel can
            self._steered.kill()
            return
        if not self._over_within(STOP_SECONDS):
            self._steered.kill()

    def _over_within(self, seconds: float) -> bool:
        """Wait for the run's end; further interruptions are heard of, and change nothing."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                if not self._orders.get(timeout=left):
                    return True
            except queue.Empty:
                break
        return False


def broken_off(status: int | None, exit_code: int) -> bool:
    """Whether an interrupted run died of it, as an ordinary command does: `status` is its first process's (minus a
    killing signal), `exit_code` what its engine tells. What ended in order, or was killed at last, is a service."""
    return status in (-signal.SIGINT, -signal.SIGTERM) or exit_code == 128 + signal.SIGINT


def _takes_interrupts(pid: int) -> bool:
    """Whether SIGINT is the way to end it. What has a handler for SIGTERM is made to be stopped by its engine, and may
    know no other order; shells catch SIGINT only to die of it."""
    caught, ignored = caught_and_ignored(pid)
    return signal.SIGTERM not in caught and signal.SIGINT not in ignored
