"""`--seccomp observed`: an allow-list of what the workload called, of what its runtime calls, and of nothing else.

Everything that is told here is read from the kernel: the workload's calls from its traced runs (under every privilege,
and with the recipe, where refusals make programs go other ways), the runtime's from starts of the container that are
watched. A rerun decides whether the list is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from profiler.catalogue.incidental import INCIDENTAL
from profiler.errors import HostError
from profiler.harness.interface import Announce, Sandbox
from profiler.model import AllowList, Called, Observed, Recipe, capability_names, opened_calls
from profiler.verifier.bench import Bench
from profiler.witness.filter import EngineFilter, names
from profiler.witness.recording import ENTER, EXEC, LEAVE, NEWTASK, Recording, in_order
from profiler.witness.starts import LOADING, after_filter, origin, threads_of

STARTS: Final = 6  # of the container at most, until one shows nothing new
ATTEMPTS: Final = 3  # runs that are watched at most, until a rerun with the list passes


def check_possible(sandbox: Sandbox) -> None:
    """HostError where calls cannot be seen, or where the engine installs no filter that a list could narrow."""
    with Recording(ENTER):
        pass
    if sandbox.filter_of(frozenset()) is None:
        raise HostError(
            "this engine installs no seccomp filter, so there is none to narrow",
            "leave --seccomp observed out, or give the engine a filter (dockerd --seccomp-profile)",
        )


def merged(parts: Iterable[Called | None]) -> Called | None:
    """What several runs called, as one; None where no run was asked for it."""
    called = [part for part in parts if part is not None]
    if not called:
        return None
    programs: dict[str, str] = {}
    for part in called:
        for name, program in part.programs.items():
            programs[name] = programs.get(name) or program
    return Called(programs, sum(part.lost for part in called), any(part.foreign for part in called))


def allow_list(
    sandbox: Sandbox,
    bench: Bench,
    recipe: Recipe,
    called: Called,
    watch: Callable[[], Called],
    announce: Announce,
) -> Observed | str:
    """What the recipe's allow-list must hold so that the workload passes; a sentence that says why there is none.

    `recipe` passes; `called` is what its traced run has called, and `watch` watches one more run with the recipe. The
    last of the bench's reruns then had the list. Raises HostError when the engine is gone.
    """
    announce("starting the container without its program, to see what the engine's runtime calls in it")
    runtime = runtime_calls(sandbox, recipe)
    if runtime is None:
        return "what the engine's runtime calls under its filter could not be seen"
    allowed = _allowed(sandbox, recipe)
    why, tried = "", False
    for _ in range(ATTEMPTS):
        announce("watching a run with the recipe to see all that it calls")
        again = watch()
        if again.lost:
            why = f"{again.lost} events of system calls were lost"
            continue
        if tried and again.programs.keys() <= called.programs.keys():
            break
        called = Called({**again.programs, **called.programs}, 0, called.foreign or again.foreign)
        if called.foreign:
            return "the workload makes 32-bit system calls, which it would not cover"
        observed = _observed(called, runtime, allowed)
        rerun = bench.run(recipe | {AllowList(observed.names)}, "with the observed calls alone")
        if rerun.passed:
            return observed
        tried = True
        why = f"with these alone the workload does not pass: {rerun.failure}"
    return why


def _observed(called: Called, runtime: frozenset[str], allowed: frozenset[str]) -> Observed:
    """What of all this the recipe's own profile allows, each call with the first of its reasons."""
    workload = {name: program for name, program in called.programs.items() if name in allowed}
    others = {name: why for name, why in INCIDENTAL.items() if name in allowed - runtime and name not in workload}
    return Observed(workload, tuple(sorted(runtime & allowed)), others)


def _allowed(sandbox: Sandbox, recipe: Recipe) -> frozenset[str]:
    """The calls that the recipe's profile allows, for some arguments at least."""
    program = sandbox.filter_of(capability_names(recipe))
    return opened_calls(recipe) | (EngineFilter(program).ever_allowed() if program is not None else frozenset())


def runtime_calls(sandbox: Sandbox, recipe: Recipe) -> frozenset[str] | None:
    """The names of the calls that the engine's runtime makes under the filter, before the workload: several starts of
    the container, until one without loss shows nothing new. None where they cannot be seen."""
    known = names("x86_64")
    with Recording(NEWTASK) as births:
        births.start()
        with sandbox.rehearse(recipe) as (init, _):
            pass
        root = origin(in_order(births.stop()), init)
    found: set[str] = set()
    for _ in range(STARTS):
        numbers_seen = _start_seen(sandbox, recipe, threads_of(root))
        if numbers_seen is None:
            continue
        new = {known[number] for number in numbers_seen if number in known} - found
        found |= new
        if new <= INCIDENTAL.keys():
            break
    return frozenset(found) or None


def _start_seen(sandbox: Sandbox, recipe: Recipe, roots: tuple[int, ...]) -> frozenset[int] | None:
    """The numbers of one start's calls; None where it was not seen whole."""
    if not roots:
        return None
    with Recording(ENTER, LEAVE, EXEC, NEWTASK) as start:
        start.only(LEAVE, LOADING)
        start.start(roots)
        with sandbox.rehearse(recipe) as (init, gate):
            pass
        events = in_order(start.stop())
        return None if start.lost() else after_filter(events, init, gate)
