"""Removes each member of a passing recipe in turn and sees whether the workload still passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from profiler.model import Privilege, Recipe, Rerun
from profiler.verifier.bench import Bench


@dataclass(frozen=True)
class Proof:
    """What removal showed: the recipe that is left, the members whose removal made the workload fail (with that
    rerun), and the members that were taken away because it passed without them."""

    recipe: Recipe
    needed: dict[Privilege, Rerun]
    dropped: tuple[Privilege, ...]

    @property
    def complete(self) -> bool:
        """Whether every member that is left was seen to be needed."""
        return set(self.needed) == set(self.recipe)


def prove(bench: Bench, recipe: Recipe, *, order: Callable[[Privilege], int], until: float | None = None) -> Proof:
    """Remove each member of `recipe` (which passes), the most dangerous first, and drop what was not needed.

    All members are tried at once as far as the bench runs in parallel; where more than one turns out to be
    unneeded alone, they are dropped one at a time, since they may stand in for each other. A dropped member's last
    rerun was made with exactly the recipe that is left. What failed without a member in a larger set counts for the
    smaller one too. No rerun is started after `until` (monotonic seconds).
    """
    members = sorted(recipe, key=lambda privilege: (-order(privilege), privilege.label))
    first = bench.run_all({recipe - {member}: f"without {member.label}" for member in members}, until)
    needed = {m: first[recipe - {m}] for m in members if recipe - {m} in first and not first[recipe - {m}].passed}
    spare = [m for m in members if recipe - {m} in first and first[recipe - {m}].passed]
    dropped: list[Privilege] = []
    current = recipe
    for member in spare:
        if _late(until):
            break
        rerun = bench.run(current - {member}, f"without {member.label}")
        if rerun.passed:
            current = rerun.recipe
            dropped.append(member)
        else:
            needed[member] = rerun
    return Proof(current, {m: r for m, r in needed.items() if m in current}, tuple(dropped))


def _late(until: float | None) -> bool:
    return until is not None and time.monotonic() > until
