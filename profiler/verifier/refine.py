"""Finds a recipe with which the workload passes, in as few reruns as it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from profiler.errors import UnverifiedError
from profiler.model import Privilege, Recipe, Rerun
from profiler.verifier.bench import Bench

FEW: Final = 2  # members in doubt that are tried at once, since their removals cost no more than another way
Investigate = Callable[[Rerun], frozenset[Privilege]]  # what a failing rerun, watched, was denied
Tells = Callable[[Rerun], Recipe]  # what a failing rerun itself tells that it lacks


def passing(
    bench: Bench,
    candidates: Sequence[Recipe],
    broad: Recipe,
    *,
    order: Callable[[Privilege], int],
    investigate: Investigate,
    guesses: Sequence[Recipe] = (),
    deny: Investigate | None = None,
    tells: Tells = lambda rerun: frozenset(),
) -> Recipe:
    """The first of `candidates` (the leanest first) with which the workload passes; where none does, the last one
    completed: by what its failing run, watched, was denied, else by the first of `guesses` that does (what `broad` has
    of it, and all of it), or else by halving what is left of `broad`.

    `deny` tells all at once what the workload was refused beyond a recipe that failed, by one run: that is what the
    recipe is completed with where the next candidate holds more than `FEW` members more, which removal would have to
    try, or where there is none. What the first rerun `tells` by itself comes before these: it takes no run.

    `order` sorts what is added blindly, the least dangerous first. Raises UnverifiedError when the workload does not
    pass in a rerun with every privilege either.
    """
    left = list(dict.fromkeys(candidates))
    last = bench.run(left.pop(0), "verify")
    if not last.passed and not (told := tells(last) & broad) <= last.recipe:
        last = bench.run(last.recipe | told, "complete")
    while not last.passed and (left or deny is not None):
        if deny is not None and (not left or len(left[0] - last.recipe) > FEW):
            found, deny = deny(last), None
            if not found <= last.recipe:
                last = bench.run(last.recipe | found, "complete")
        else:
            last = bench.run(last.recipe | left.pop(0), "verify")
    if last.passed:
        return last.recipe
    for _ in range(3):
        denied = investigate(last) & broad
        if denied <= last.recipe:
            break
        last = bench.run(last.recipe | denied, "complete")
        if last.passed:
            return last.recipe
    for guess in guesses:
        more = guess & broad
        if not more <= last.recipe and bench.run(last.recipe | more, "complete").passed:
            return last.recipe | more
    return _halved(bench, last.recipe, broad, order)


def _halved(bench: Bench, base: Recipe, broad: Recipe, order: Callable[[Privilege], int]) -> Recipe:
    """Adds to `base` what is missing of `broad`, each found by halving: about log2(n) reruns a member."""
    if not bench.run(base | broad, "every privilege").passed:
        raise UnverifiedError(
            "the workload passed once under every privilege but not when it was run again",
            _why(bench, base | broad)
            + "make it repeatable (state that it leaves behind, ports in use, input it waits for), then profile again",
        )
    left = sorted(broad - base, key=lambda privilege: (order(privilege), privilege.label))
    while not bench.run(base, "complete").passed:
        low, high = 0, len(left)  # base + left[:low] fails, base + left[:high] passes
        while high - low > 1:
            middle = (low + high) // 2
            if bench.run(base | frozenset(left[:middle]), "halve").passed:
                high = middle
            else:
                low = middle
        base |= {left[high - 1]}
        left = left[: high - 1]
    return base


def _why(bench: Bench, recipe: Recipe) -> str:
    failure = bench.failures.get(recipe)
    return f"{failure}; " if failure else ""
