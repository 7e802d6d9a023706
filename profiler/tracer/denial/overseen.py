"""The thread that oversees a workload: it seizes the gate again, executes the workload and stays until all has ended.

All ptrace requests come from one thread, and that one waits for whatever task stops next: it may have no other
children, so it is none that others use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from profiler.kernel.overseer import Overseen, Overseer


class OverseenRun:
    """One gate that becomes an overseen workload. `begin`, `hold` and `finish` in this order, on the session's thread.
    What the thread fails with is raised by the next of them; the workload is then dead."""

    def __init__(self, pid: int, overseer: Overseer) -> None:
        self._pid = pid
        self._overseer = overseer
        self._executed = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._steered: Overseen | None = None

    @property
    def steered(self) -> Overseen:
        """The workload's first process: `kill`, `send` and `status` are for any thread."""
        assert self._steered is not None
        return self._steered

    def begin(self, argv: Sequence[str], env: Sequence[str], executed: Callable[[], None]) -> None:
        """Execute the workload; `executed` is called, on the thread, before its first instruction."""

        def run() -> None:
            try:
                self._steered = Overseen.seize(self._pid)
                self._steered.execute(argv, env)
                executed()
                self._executed.set()
                self._steered.oversee(self._overseer)
            except BaseException as error:  # handed on to whoever waits for the run
                self._failure = error
            finally:
                self._executed.set()
                if self._steered is not None:
                    self._steered.first_ended.set()

        self._thread = threading.Thread(target=run, name="overseer", daemon=True)
        self._thread.start()
        self._executed.wait()
        self._raise_failure()

    def hold(self) -> None:
        """Wait for the end of the workload's first process."""
        self.steered.first_ended.wait()
        self._raise_failure()

    def wait(self, seconds: float) -> bool:
        """Wait until its last task is gone. False when the time is up."""
        assert self._thread is not None
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def finish(self) -> None:
        """End what is left of it, and the thread. Idempotent."""
        if self._thread is not None:
            if self._steered is not None:
                self._steered.kill_all()
            self._thread.join()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
