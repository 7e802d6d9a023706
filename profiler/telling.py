"""Requirements whose evidence names no file get it from one more run, in which the call is refused, and stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from profiler.model import Observation, Privilege, Recipe, Requirement, Trace
from profiler.synthesizer.denials import refusals
from profiler.verifier.prove import Proof

_SHOWN = 4  # refused calls

Watch = Callable[[Privilege, frozenset[str]], Trace]
"""Traces a run with the proved recipe but for that member, in which these calls are stopped, too."""


def told(rows: Sequence[Requirement], proof: Proof, watch: Watch) -> tuple[Requirement, ...]:
    """`rows` with the refused calls first where the traced run could not name what its calls were about.

    Opening a file for reading is not stopped in the traced run (there are far too many of them), so the check is known
    from there but not the path. Without the member the call fails, and there it is stopped. A member with some other
    requirement that names what it is for needs no such run.
    """
    found: dict[Requirement, Requirement] = {}
    for member in proof.needed:
        answered = [row for row in rows if _answered_by(row, proof.recipe) == member]
        if any(observation.args for row in answered for observation in _observations(row)):
            continue
        calls = frozenset(o.call for row in answered for o in _observations(row) if o.call)
        if not calls:
            continue
        watched = watch(member, calls)
        for row in answered:
            named = tuple(observation for observation in refusals(watched, row) if observation.args)
            found[row] = dataclasses.replace(row, evidence=named[:_SHOWN] + row.evidence)
    return tuple(found.get(row, row) for row in rows)


def _answered_by(row: Requirement, recipe: Recipe) -> Privilege | None:
    """The member of `recipe` that meets a requirement alone; None where none does."""
    return next((member for a in row.alternatives if a <= recipe for member in a), None)


def _observations(row: Requirement) -> list[Observation]:
    return [piece for piece in row.evidence if isinstance(piece, Observation)]
