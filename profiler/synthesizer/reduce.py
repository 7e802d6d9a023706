"""From requirements to the least dangerous recipe: a minimum-weight hitting set."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from profiler.model import Doubt, Privilege, Recipe, Requirement

EXHAUSTIVE = 4096  # combinations tried one by one; beyond it each requirement takes its own lightest alternative
Weight = Callable[[Privilege], int]


def reduce(requirements: Iterable[Requirement], weight: Weight, *, up_to: Doubt) -> Recipe:
    """The lightest set of privileges that meets every requirement whose doubt is at most `up_to`.

    `weight` says how much an attacker gains from a privilege; equal weights are settled by the privileges' names, so
    that the answer does not change from run to run.
    """
    wanted = [requirement for requirement in requirements if requirement.doubt <= up_to]
    forced: set[Privilege] = set()
    for requirement in wanted:
        if len(requirement.alternatives) == 1:
            forced |= requirement.alternatives[0]
    open_ones = [
        requirement.alternatives
        for requirement in wanted
        if not any(alternative <= forced for alternative in requirement.alternatives)
    ]
    return frozenset(forced | _lightest(open_ones, forced, weight))


def meets(recipe: Recipe, requirement: Requirement) -> bool:
    """Whether `recipe` holds one of the requirement's alternatives."""
    return any(alternative <= recipe for alternative in requirement.alternatives)


def doubted(requirements: Iterable[Requirement], recipe: Recipe) -> Recipe:
    """The members of `recipe` that are in it for requirements of an even chance only, or of less."""
    met = [(row.doubt, a) for row in requirements for a in row.alternatives if a <= recipe]
    sure = {member for doubt, alternative in met if doubt <= Doubt.LIKELY for member in alternative}
    return frozenset(member for _, alternative in met for member in alternative) - sure


def asked_together(requirements: Iterable[Requirement], recipe: Recipe) -> tuple[Recipe, ...]:
    """The members of `recipe` that are in it for the very same calls, several at a time."""
    asked: dict[Privilege, list[Requirement]] = {}
    for row in requirements:
        for member in {member for alternative in row.alternatives if alternative <= recipe for member in alternative}:
            asked.setdefault(member, []).append(row)
    groups: dict[tuple[object, ...], set[Privilege]] = {}
    for member, rows in asked.items():
        groups.setdefault(tuple(row.evidence for row in rows), set()).add(member)
    return tuple(frozenset(group) for calls, group in groups.items() if len(group) > 1 and all(calls))


def stand_ins(requirements: Iterable[Requirement], recipe: Recipe, weight: Weight) -> dict[Privilege, Recipe]:
    """For members of `recipe` that the kernel takes where it asked for something less dangerous: that.

    Another requirement has brought the member in, which the workload may do without.
    """
    found: dict[Privilege, Recipe] = {}
    for requirement in requirements:
        met = [alternative for alternative in requirement.alternatives if alternative <= recipe]
        others = [alternative for alternative in requirement.alternatives if not alternative <= recipe]
        if requirement.doubt > Doubt.DOUBTFUL or len(met) != 1 or len(met[0]) != 1 or not others:
            continue
        (member,) = met[0]
        lightest = min(others, key=lambda alternative: sum(weight(p) for p in alternative))
        found[member] = found.get(member, frozenset()) | lightest - recipe
    return {member: instead for member, instead in found.items() if sum(weight(p) for p in instead) < weight(member)}


def _lightest(
    choices: Sequence[Sequence[frozenset[Privilege]]], forced: set[Privilege], weight: Weight
) -> frozenset[Privilege]:
    def cost(added: frozenset[Privilege]) -> tuple[int, int, list[str]]:
        fresh = added - forced
        return sum(weight(p) for p in fresh), len(fresh), sorted(p.label for p in fresh)

    distinct = list(dict.fromkeys(tuple(choice) for choice in choices))
    if math.prod(len(choice) for choice in distinct) > EXHAUSTIVE:
        return frozenset().union(*(min(choice, key=cost) for choice in distinct))
    combinations = (frozenset().union(*pick) for pick in itertools.product(*distinct))
    return min(combinations, key=cost)
