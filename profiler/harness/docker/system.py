"""A container's /sys: the engine's own mounts there, and the control groups that a run leaves in the host's tree."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from profiler.harness.docker.arguments import DockerRun
from profiler.harness.docker.mounts import mounts
from profiler.kernel.mountinfo import Mount, below, mounts_of

_SYSTEM = "/sys"
_SYSTEMS = frozenset({"sysfs", "cgroup", "cgroup2"})


def engine_mounts(run: DockerRun, gate: int) -> tuple[Mount, ...]:
    """The engine's own mounts below /sys in the container of the process `gate`: read-only, unless it is `--privileged`
    or an option of the recipe says otherwise."""
    users = {mount.target.rstrip("/") for mount in mounts(run)}
    return tuple(
        mount
        for mount in mounts_of(gate)
        if below(mount.point, _SYSTEM) and mount.fstype in _SYSTEMS and mount.point not in users
    )


@contextmanager
def leaving_none(groups: Iterable[str]) -> Iterator[None]:
    """Those of `groups` (their paths) that are not there at the beginning are removed at the end, with all below them.

    A group in which a process still lives stays (cgroups(7)).
    """
    absent = [group for group in groups if not Path(group).is_dir()]
    try:
        yield
    finally:
        for group in absent:
            for directory, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    os.rmdir(directory)  # noqa: PTH106
