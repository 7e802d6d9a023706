"""What the reruns say of each requirement: required, optional, or not proved either way."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

from profiler.catalogue.dangers import weight
from profiler.model import (
    AllowList,
    Doubt,
    JudgedRequirement,
    Observation,
    Privilege,
    RawCall,
    Requirement,
    Status,
    Verdict,
)
from profiler.synthesizer.reduce import meets

SHOWN = 80  # characters of a call's arguments in a few words


def judged(
    rows: Iterable[Requirement], verdict: Verdict, proved: Container[Privilege]
) -> tuple[JudgedRequirement, ...]:
    """One row a privilege of the recipe, then what was asked for and left out.

    `proved` are the members whose removal was seen to fail. A member that no requirement names was found by reruns
    alone, and its row says so.
    """
    rows = [row for row in rows if row.doubt is not Doubt.NEGLIGIBLE]
    met = [row for row in rows if meets(verdict.recipe, row)]
    left_out = [row for row in rows if not meets(verdict.recipe, row)]
    return (*_members(met, verdict, proved), *_optional(left_out))


def _members(
    rows: Sequence[Requirement], verdict: Verdict, proved: Container[Privilege]
) -> Iterator[JudgedRequirement]:
    answered: set[Privilege] = set()
    for row in sorted(rows, key=_tells_least):
        for member in next(alternative for alternative in row.alternatives if alternative <= verdict.recipe):
            if member not in answered:
                answered.add(member)
                yield JudgedRequirement(member, row, _status(member, verdict, proved))
    # A bound is asked for by nobody.
    unanswered = {p for p in verdict.recipe - answered if not isinstance(p, AllowList)}
    for member in sorted(unanswered, key=lambda p: (-weight(p), p.label)):
        why = verdict.denials.get(member)
        reason = "no witness saw what it is for; without it the workload fails" + (f": {why}" if why else "")
        row = Requirement((frozenset({member}),), reason, Doubt.CERTAIN)
        yield JudgedRequirement(member, row, _status(member, verdict, proved))


def _tells_least(row: Requirement) -> tuple[bool, int, Doubt]:
    """Sorts a member's rows: what names its call's arguments first, then what nothing else could answer."""
    told = any(not isinstance(piece, Observation) or piece.args for piece in row.evidence)
    return not told, len(row.alternatives), row.doubt


def _optional(rows: Sequence[Requirement]) -> Iterator[JudgedRequirement]:
    seen: set[Privilege] = set()
    for row in rows:
        lightest = min((p for a in row.alternatives for p in a), key=lambda p: (weight(p), p.label))
        if lightest not in seen:
            seen.add(lightest)
            yield JudgedRequirement(lightest, row, Status.OPTIONAL)


def _status(member: Privilege, verdict: Verdict, proved: Container[Privilege]) -> Status:
    if member in verdict.kept:
        return Status.OPTIONAL
    return Status.REQUIRED if member in proved else Status.UNPROVEN


def asked_for(requirement: Requirement) -> str:
    """What a requirement was for: its first piece of evidence in a few words, then its reason."""
    return "; ".join(part for part in (_first_piece(requirement), requirement.reason) if part)


def _first_piece(requirement: Requirement) -> str:
    if not requirement.evidence:
        return ""
    piece = requirement.evidence[0]
    by = f" by {piece.process.exe}" if piece.process.exe else ""
    if isinstance(piece, RawCall):
        return f"{piece.name}({_short(', '.join(piece.shown))}){by}"
    if isinstance(piece, Observation):
        shown = f"({_short(', '.join(piece.args))})" if piece.args else ""  # none: it was not stopped
        return f"{piece.call or 'a kernel thread'}{shown}{by}"
    return f"{piece.path}{by}"


def _short(args: str) -> str:
    return args if len(args) <= SHOWN else f"{args[: SHOWN - 1]}…"
