"""What a recipe leaves a workload that wanted to give it up: refused calls that would have taken privilege away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from profiler.catalogue.giving_up import GIVING_UP
from profiler.model import Capability, Doubt, Observation, Privilege, Requirement

_NOT_OTHERS = ("0", "-1")  # root's id, and the one that leaves an id as it is
_SHOWN = 3  # programs that are named


def less_confined(observations: Iterable[Observation], left_out: Iterable[Requirement]) -> Mapping[Privilege, str]:
    """For each capability that was left out what a program of the workload keeps without it, in words.

    `observations` are those of the run with every privilege. A call counts that succeeded there and asked for the
    capability itself, and is refused with a recipe that does not meet `left_out`: whether the workload then ends the
    same is the reruns' to tell, and they cannot tell what it is after that.
    """
    names = {
        privilege.name
        for row in left_out
        if row.doubt is not Doubt.NEGLIGIBLE
        for alternative in row.alternatives
        for privilege in alternative
        if isinstance(privilege, Capability)
    }
    found: dict[tuple[str, str], list[Observation]] = {}
    for observation in observations:
        kept = _kept(observation)
        if kept is not None and kept[0] in names:
            found.setdefault(kept, []).append(observation)
    told: dict[Privilege, list[str]] = {}
    for (name, kept_words), calls in found.items():
        told.setdefault(Capability(name), []).append(f"{_calls(calls)} is refused, and if it goes on it {kept_words}")
    return {privilege: "; ".join(texts) for privilege, texts in told.items()}


def _kept(observation: Observation) -> tuple[str, str] | None:
    """The capability by which this call has given something up, and what is kept without; None for any other call."""
    row = GIVING_UP.get(observation.call or "")
    if row is None or not observation.args or observation.result is None or observation.result < 0:
        return None
    asked = any(
        check.capability == row.capability and check.granted and not check.borrowed and not check.foreign_namespace
        for check in observation.checks
    )
    if not asked or (row.option and observation.args[0] != row.option):
        return None
    if row.of_root and (observation.process.uid != 0 or not any(arg not in _NOT_OTHERS for arg in observation.args)):
        return None
    return row.capability, row.kept


def _calls(calls: list[Observation]) -> str:
    """The first of these calls, and every program that made one."""
    programs = list(dict.fromkeys(o.process.exe for o in calls if o.process.exe))
    by = f" by {', '.join(programs[:_SHOWN])}{' …' if len(programs) > _SHOWN else ''}" if programs else ""
    return f"{calls[0].call}({', '.join(calls[0].args)}){by}"
