"""Runs recipes and remembers what came of them: the same recipe is not run twice unless that is asked for."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from profiler.harness.interface import Sandbox, Service
from profiler.model import Outcome, Recipe, Rerun

Accepts = Callable[[Outcome], str | None]  # None: passed; otherwise why not, in a few words
Examine = Callable[[Recipe], str | None]  # the same, of one more run with the recipe


class Bench:
    """Reruns of one workload. `accepts` tells whether an outcome counts as passed; `timeout` is in seconds a run, and
    `service` says when one is stopped that does not end by itself. What passed is examined further where that is asked.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        accepts: Accepts,
        *,
        timeout: float | None,
        jobs: int = 1,
        service: Service | None = None,
        examine: Examine | None = None,
        on_run: Callable[[Rerun], None] = lambda rerun: None,
    ) -> None:
        self._sandbox = sandbox
        self._accepts = accepts
        self._timeout = timeout
        self._service = service
        self._examine = examine
        self._on_run = on_run
        self._lock = threading.Lock()
        self._runs: dict[Recipe, Rerun] = {}
        self._order: list[Rerun] = []
        self.jobs = max(1, jobs) if sandbox.parallel() else 1
        self.failures: dict[Recipe, str] = {}

    @property
    def runs(self) -> tuple[Rerun, ...]:
        """Every rerun made so far, in the order in which they ended."""
        return tuple(self._order)

    def known(self, recipe: Recipe) -> Rerun | None:
        """The rerun of exactly this recipe, if it was made."""
        return self._runs.get(recipe)

    def run(self, recipe: Recipe, purpose: str, slot: int = 0) -> Rerun:
        """Rerun the workload with exactly `recipe`, unless that was done before.

        Raises HostError when the engine is gone.
        """
        return self._runs.get(recipe) or self.again(recipe, purpose, slot)

    def again(self, recipe: Recipe, purpose: str, slot: int = 0) -> Rerun:
        """Rerun the workload with `recipe`, also where that was done before; the newest answer is remembered.

        Raises HostError when the engine is gone.
        """
        outcome = self._sandbox.rerun(recipe, timeout=self._timeout, slot=slot, service=self._service)
        failure = self._accepts(outcome)
        if failure is None and self._examine is not None:
            failure = self._examine(recipe)
        rerun = Rerun(recipe, outcome, failure is None, purpose, failure or "")
        with self._lock:
            self._runs[recipe] = rerun
            self._order.append(rerun)
            self.failures.pop(recipe, None)
            if failure is not None:
                self.failures[recipe] = failure
        self._on_run(rerun)
        return rerun

    def trial(self, recipe: Recipe, purpose: str) -> Rerun:
        """Rerun the workload with `recipe` otherwise than it is printed, which proves nothing of it: not remembered.

        Raises HostError when the engine is gone.
        """
        outcome = self._sandbox.rerun(recipe, timeout=self._timeout, service=self._service)
        failure = self._accepts(outcome)
        rerun = Rerun(recipe, outcome, failure is None, purpose, failure or "")
        self._on_run(rerun)
        return rerun

    def run_all(self, recipes: Mapping[Recipe, str], until: float | None = None) -> dict[Recipe, Rerun]:
        """Rerun several recipes (each with its purpose), `jobs` at a time; none is started after `until` (monotonic
        seconds). Recipes for which no time was left are missing in the answer."""
        done: dict[Recipe, Rerun] = {}
        todo: list[tuple[Recipe, str]] = list(recipes.items())

        def work(slot: int) -> None:
            while True:
                with self._lock:
                    if not todo or (until is not None and time.monotonic() > until):
                        return
                    recipe, purpose = todo.pop(0)
                rerun = self.run(recipe, purpose, slot)
                with self._lock:
                    done[recipe] = rerun

        workers = min(self.jobs, len(todo))
        if workers <= 1:
            work(0)
            return done
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            try:
                _all_of(pool.submit(work, slot) for slot in range(workers))
            except BaseException:
                todo.clear()  # leaving the pool waits for its threads, and nobody wants their answers any more
                self._sandbox.abort()
                raise
        return done


def _all_of(futures: Iterable[concurrent.futures.Future[None]]) -> None:
    for future in list(futures):
        future.result()
