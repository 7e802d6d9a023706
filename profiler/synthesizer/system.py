"""What a trace needs where a container's /sys is read-only: a mount of the host's, or its control groups writable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from profiler.catalogue.paths import CONTROL_GROUPS, OPENS_FOR_WRITING
from profiler.model import (
    BindMount,
    Doubt,
    Observation,
    Privilege,
    Recipe,
    Requirement,
    SecurityOption,
    SystemWrite,
    Trace,
)
from profiler.synthesizer.requirements import EXAMPLES

WRITABLE_GROUPS = SecurityOption("writable-cgroups=true")
_MOUNTING = frozenset({"mount", "move_mount", "mount_setattr"})
_GROUPS = frozenset({'"cgroup"', '"cgroup2"'})
_REASON = "a container's /sys is mounted read-only"


def system_requirements(trace: Trace, broad: Recipe) -> tuple[Requirement, ...]:
    """One requirement a file or hierarchy. An engine of `broad` that can make a container's own control groups writable
    is asked for that, another for the host's."""
    rows: dict[Privilege, list[tuple[Doubt, Observation]]] = {}
    for observation, write in _writes(trace):
        if not write.place:
            continue
        privilege: Privilege = BindMount(write.place)
        if write.place.startswith(CONTROL_GROUPS):
            own = WRITABLE_GROUPS in broad
            privilege = WRITABLE_GROUPS if own else BindMount(write.place, write.own_groups)
        failed = observation.result is not None and observation.result < 0
        doubt = Doubt.DOUBTFUL if failed or write.doubtful else Doubt.LIKELY
        rows.setdefault(privilege, []).append((doubt, observation))
    return tuple(
        Requirement(
            (frozenset({privilege}),),
            _REASON,
            min(doubt for doubt, _ in found),
            tuple(one for _, one in sorted(found, key=lambda each: each[0])[:EXAMPLES]),
        )
        for privilege, found in rows.items()
    )


def beyond_reach(trace: Trace) -> Observation | None:
    """The first write below /sys for which no flag of an engine's but `--privileged` would do."""
    return next((one for one, write in _writes(trace) if not write.place and (one.result or 0) >= 0), None)


def _writes(trace: Trace) -> Iterator[tuple[Observation, SystemWrite]]:
    """The calls that wrote to a mount as the engine has made it. A workload that mounts there itself, or takes the
    read-only flag away, does so in every run; and who mounts control groups elsewhere finds the same ones there, so
    that a new one may have been made in any of them."""
    mounting = [one for one in trace.observations if one.call in _MOUNTING and one.result == 0]
    mounted = {one.path for one in mounting}
    mounts_groups = any(not _GROUPS.isdisjoint(one.args) for one in mounting)
    for observation in trace.observations:
        write = trace.system.get(observation.path or "")
        if write is None or write.mount in mounted or (write.made and mounts_groups):
            continue
        if observation.call in {*OPENS_FOR_WRITING, "mkdir"}:
            yield observation, write


def groups_made(trace: Trace) -> tuple[str, ...]:
    """The control groups that the workload made in those that the container has, by path."""
    return tuple(path for path, write in trace.system.items() if write.made)


def mounts(requirements: Iterable[Requirement]) -> Recipe:
    """What of the host's any of the requirements would have mounted."""
    return frozenset(p for row in requirements for a in row.alternatives for p in a if isinstance(p, BindMount))
