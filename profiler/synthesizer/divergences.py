"""What a run with a leaner recipe was refused although it had succeeded with every privilege."""

from __future__ import annotations

from collections.abc import Iterable

from profiler.model import Doubt, Observation, RawCall, Recipe, Requirement, Trace
from profiler.synthesizer.denials import refusals
from profiler.synthesizer.reduce import meets


def unmet(rows: Iterable[Requirement], recipe: Recipe) -> tuple[Requirement, ...]:
    """The requirements that `recipe` does not meet, without those that decide nothing."""
    return tuple(row for row in rows if row.doubt is not Doubt.NEGLIGIBLE and not meets(recipe, row))


def calls_of(rows: Iterable[Requirement]) -> frozenset[str]:
    """The calls whose results a watched run must show."""
    pieces = (piece for row in rows for piece in row.evidence)
    return frozenset(piece.call for piece in pieces if isinstance(piece, Observation) and piece.call)


def divergence(rows: Iterable[Requirement], watched: Trace) -> str | None:
    """The first call of the `watched` run that was refused and had succeeded, in a few words; None without any.

    `rows` are the requirements that its recipe does not meet. Devices that are not there and calls that a filter denies
    never reach the listener: where they were used with success, they are told without having been watched.
    """
    for row in rows:
        for piece in row.evidence:
            if isinstance(piece, RawCall) and (piece.result or 0) >= 0:
                return f"{piece.name} is denied by the engine's filter, and had succeeded"
            if not isinstance(piece, Observation | RawCall):
                return f"{piece.path} is not there, and was used"
        if not any(isinstance(piece, Observation) and (piece.result or 0) >= 0 for piece in row.evidence):
            continue
        for refused in refusals(watched, row):
            if refused.result is not None and refused.result < 0:
                return f"{refused.call}({', '.join(refused.args)[:100]}) is refused, and had succeeded"
    return None
