"""From the trace of a run that failed to what it was denied: the same rules, read from the refused checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Mapping

from profiler.catalogue.sites import SUBSET_RULE
from profiler.catalogue.substitutes import SUBSTITUTES
from profiler.model import (
    Capability,
    Doubt,
    KernelCheck,
    Observation,
    Recipe,
    Requirement,
    Trace,
    capability_names,
)
from profiler.synthesizer.pools import Pools
from profiler.synthesizer.requirements import requirements


def denied(trace: Trace, recipe: Recipe, grantable: frozenset[str]) -> tuple[Requirement, ...]:
    """What the refused calls of this run needed, beyond what `recipe` holds.

    A call that asks for several in turn (DAC_READ_SEARCH, then DAC_OVERRIDE) needs one of them. The surest refusals
    count alone: what is doubtful is taken only where nothing else was refused.
    """
    held = capability_names(recipe)
    shown = {
        _blamed(
            dataclasses.replace(observation, checks=tuple(_as_granted(_first_asked(observation), held)))
        ): observation
        for observation in trace.observations
    }
    needs = requirements(
        dataclasses.replace(trace, observations=tuple(shown), devices=()), grantable - held, Pools({}), confined=False
    )
    sure = tuple(row for row in needs if row.doubt <= Doubt.EVEN)
    rows = sure or tuple(row for row in needs if row.doubt is Doubt.DOUBTFUL)
    return tuple(_restored(row, shown) for row in rows)


def requirements_of(
    trace: Trace, grantable: frozenset[str], pools: Pools, *, confined: bool
) -> tuple[Requirement, ...]:
    """As `requirements`, for a denied run as well: there a capability is needed by a call that was refused for it and
    made again with it, and perhaps by one that asked for it, was refused, and succeeded all the same.

    What was granted is granted only where it was given before, or where no refusal could be seen in the result.
    """
    if trace.denial is None:
        return requirements(trace, grantable, pools, confined=confined)
    given = {refusal.capability for refusal in trace.denial.refusals}
    shown: dict[Observation, Observation] = {}  # what the rules read, and what the evidence shall show in its place
    for refusal in trace.denial.refusals:
        checks = tuple(
            dataclasses.replace(check, granted=True)
            for check in refusal.observation.checks
            if check.capability == refusal.capability and not check.granted
        )
        shown[dataclasses.replace(refusal.observation, result=refusal.again, checks=checks)] = refusal.observation
    for observation in trace.observations:
        granted = tuple(check for check in observation.checks if check.granted and not _lent(check, given))
        shown[dataclasses.replace(observation, checks=granted)] = observation
        silent = tuple(
            dataclasses.replace(check, granted=True) for check in observation.checks if check in trace.denial.withheld
        )
        if silent:
            shown[dataclasses.replace(observation, result=-1, checks=silent)] = observation
    rows = requirements(dataclasses.replace(trace, observations=tuple(shown)), grantable, pools, confined=confined)
    return tuple(_restored(row, shown) for row in rows)


def _lent(check: KernelCheck, given: Container[str]) -> bool:
    """Granted for the time of one call, since only an effective set that is kept down is refused there."""
    return check.site == SUBSET_RULE and check.capability not in given


def _restored(row: Requirement, shown: Mapping[Observation, Observation]) -> Requirement:
    """The row with what was observed in place of what the rules have read."""
    evidence = (shown.get(piece, piece) if isinstance(piece, Observation) else piece for piece in row.evidence)
    return dataclasses.replace(row, evidence=tuple(evidence))


def refusals(trace: Trace, requirement: Requirement) -> tuple[Observation, ...]:
    """The calls of `trace` in which the kernel refused one of the requirement's capabilities, the most telling first:
    calls that it has as evidence, then those that failed.

    A call may ask for something that decides only on what else it shows (/proc/PID/stat), and then succeed; netlink
    answers in its reply, and what fails before it may be a larger buffer that nobody misses.
    """
    asked = {piece.call for piece in requirement.evidence if isinstance(piece, Observation)}
    names = {p.name for alternative in requirement.alternatives for p in alternative if isinstance(p, Capability)}
    refused = [
        observation
        for observation in trace.observations
        if any(check.capability in names and not check.granted for check in observation.checks)
    ]
    return tuple(sorted(refused, key=lambda one: (one.call not in asked, (one.result or 0) >= 0)))


def _as_granted(checks: Iterable[KernelCheck], held: frozenset[str]) -> Iterable[KernelCheck]:
    return (
        dataclasses.replace(check, granted=True)
        for check in checks
        if not check.granted and check.capability not in held
    )


def _first_asked(observation: Observation) -> Iterable[KernelCheck]:
    """The checks without those that only stand in for another refused one of the same call."""
    asked = {check.capability for check in observation.checks if not check.granted}
    stand_ins = {name for row in SUBSTITUTES if row.asked in asked for name in row.instead}
    return [check for check in observation.checks if check.granted or check.capability not in stand_ins]


def _blamed(observation: Observation) -> Observation:
    """The observation as the rules shall read it: a refused call is not one that fails whatever it is given, and one
    that succeeded all the same is."""
    if observation.result is None:
        return observation
    return dataclasses.replace(observation, result=0 if observation.result < 0 else -1)
