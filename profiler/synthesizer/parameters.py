"""Kernel parameters that the engine can set instead of letting the workload write them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from profiler.catalogue.paths import namespaced_sysctl
from profiler.model import Evidence, Observation, Privilege, Requirement, Sysctl
from profiler.synthesizer.requirements import UNMASKED


def with_sysctls(requirements: Iterable[Requirement], values: Mapping[str, str]) -> tuple[Requirement, ...]:
    """The same requirements; those for a writable /proc/sys say which parameters (`--sysctl`) may do instead.

    `values` are the parameters' last values by key. A workload that insists on writing itself still fails with them,
    one that looks first, or goes on when it is refused, does not: so they are worth a rerun, but not the first.
    """
    rows: list[Requirement] = []
    for row in requirements:
        rows += _by_parameter(row, values) if row.alternatives == (frozenset({UNMASKED}),) else [row]
    return tuple(rows)


def _by_parameter(row: Requirement, values: Mapping[str, str]) -> list[Requirement]:
    """`row` as one requirement a parameter that the engine could set, and one for whatever else it is for."""
    of: dict[str | None, list[Evidence]] = {}
    for piece in row.evidence:
        key = namespaced_sysctl(piece.path or "") if isinstance(piece, Observation) else None
        of.setdefault(key if key in values else None, []).append(piece)
    rows = []
    for key, evidence in of.items():
        parameter: set[frozenset[Privilege]] = set() if key is None else {frozenset({Sysctl(key, values[key])})}
        rows.append(dataclasses.replace(row, alternatives=(*row.alternatives, *parameter), evidence=tuple(evidence)))
    return rows
