"""`--seccomp observed`: an allow-list of what the workload called, of what its runtime calls, and of nothing else.

Everything that is told here is read from the kernel: the workload's calls from its traced runs (under every privilege,
and with the recipe, where refusals make programs go other ways), the runtime's from starts of the container that are
watched. A rerun decides whether the list is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from profiler.catalogue.incidental import INCIDENTAL, INCIDENTAL_I386
from profiler.errors import HostError
from profiler.harness.interface import Announce, Sandbox
from profiler.kernel.bpf import AUDIT_ARCH_I386
from profiler.model import Called, Observed, Recipe, capability_names, opened_calls
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
    lost, foreign = sum(part.lost for part in called), any(part.foreign for part in called)
    return Called(programs, lost, foreign, {name: by for part in called[::-1] for name, by in part.i386.items()})


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
        if tried and again.programs.keys() <= called.programs.keys() and again.i386.keys() <= called.i386.keys():
            break
        called = Called(
            {**again.programs, **called.programs},
            0,
            called.foreign or again.foreign,
            {**again.i386, **called.i386},
        )
        if called.foreign:
            return "the workload makes system calls of x32, which it would not cover"
        observed = _observed(called, runtime, allowed)
        rerun = bench.run(recipe | {observed.bound}, "with the observed calls alone")
        if rerun.passed:
            return observed
        tried = True
        why = f"with these alone the workload does not pass: {rerun.failure}"
    return why


@dataclass(frozen=True)
class _Allowed:
    """The calls that the recipe's profile allows, for some arguments at least: of x86-64, and of 32-bit programs."""

    native: frozenset[str]
    i386: frozenset[str]


def _observed(called: Called, runtime: frozenset[str], allowed: _Allowed) -> Observed:
    """What of all this the recipe's own profile allows, each call with the first of its reasons."""
    workload = {name: program for name, program in called.programs.items() if name in allowed.native}
    others = {name: why for name, why in INCIDENTAL.items() if name in allowed.native - runtime - workload.keys()}
    i386 = {name: program for name, program in called.i386.items() if name in allowed.i386}
    if i386:
        others |= {name: why for name, why in INCIDENTAL_I386.items() if name in allowed.i386 - i386.keys()}
    return Observed(workload, tuple(sorted(runtime & allowed.native)), others, i386)


def _allowed(sandbox: Sandbox, recipe: Recipe) -> _Allowed:
    program = sandbox.filter_of(capability_names(recipe))
    opened = opened_calls(recipe)
    if program is None:
        return _Allowed(opened, opened)
    engine_filter = EngineFilter(program)
    return _Allowed(opened | engine_filter.ever_allowed(), opened | engine_filter.ever_allowed(AUDIT_ARCH_I386))


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
