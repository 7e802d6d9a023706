"""Pools of device nodes: of which any may be used in the next run, so that the recipe must hold for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from profiler.model import Trace


@dataclass(frozen=True)
class Pools:
    """Maps (kind, major) of each pool to the nodes of it that are present on this host."""

    nodes: Mapping[tuple[str, int], tuple[str, ...]]

    def of(self, kind: str, major: int) -> tuple[str, ...] | None:
        """The present nodes of the pool that a device belongs to; None for a device that is no pool's."""
        return self.nodes.get((kind, major))


def pools_of(trace: Trace, present: Callable[[str, int], tuple[str, ...] | None]) -> Pools:
    """The pools among the devices of `trace`. `present` gives a pool's nodes on this host, None for what is no pool."""
    found: dict[tuple[str, int], tuple[str, ...]] = {}
    for use in trace.devices:
        nodes = present(use.kind, use.major)
        if nodes is not None:
            found[use.kind, use.major] = nodes
    return Pools(found)
