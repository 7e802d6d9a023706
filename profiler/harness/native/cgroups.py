"""Control groups of one sandbox: a child of our own group in every hierarchy, and what it may do with device nodes.

Two groups deep: the limits are on the outer one, the sandbox's cgroup namespace is rooted at the inner one, so that no
privilege inside can lift them (devcgroup_update_access in security/device_cgroup.c asks the parent).
Sources: cgroups(7), cgroup_namespaces(7), Documentation/admin-guide/cgroup-v1/devices.rst,
Documentation/scheduler/sched-rt-group.rst.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from profiler.catalogue.devices import COMMON
from profiler.kernel import device_filter
from profiler.kernel.mountinfo import Mount, below

INNER = "sandbox"
REALTIME = 50_000  # microseconds of each second (cpu.rt_period_us) that may run with a real-time policy
# What a runtime lets every container do: make any node, use the common ones.
ALWAYS_ALLOWED = (
    "c *:* m",
    "b *:* m",
    *sorted(f"{kind} {major}:{'*' if minor is None else minor} rwm" for kind, major, minor in COMMON),
)


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy and the directory of the group that this process is in."""

    mount: Mount
    own: Path

    @property
    def controllers(self) -> tuple[str, ...]:
        """What `mount -t cgroup -o` takes for it; empty for the unified hierarchy."""
        if self.mount.fstype == "cgroup2":
            return ()
        return tuple(o for o in self.mount.super_options if o not in ("rw", "ro") and not o.startswith("release_agent"))


def hierarchies(mounts: Iterable[Mount], own_groups: str) -> tuple[Hierarchy, ...]:
    """The hierarchies among `mounts` that show our group; `own_groups` is the text of /proc/self/cgroup."""
    paths: dict[str, str] = {}
    for line in own_groups.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(",") if controllers else ("",):
            paths[controller] = path
    found: dict[tuple[str, ...], Hierarchy] = {}
    for mount in mounts:
        if mount.fstype not in ("cgroup", "cgroup2"):
            continue
        named = [o for o in mount.super_options if o in paths] if mount.fstype == "cgroup" else [""]
        if not named or named[0] not in paths:
            continue
        path = paths[named[0]]
        if not below(path, mount.root):
            continue
        hierarchy = Hierarchy(mount, Path(mount.point) / Path(path).relative_to(mount.root))
        found.setdefault((mount.fstype, *hierarchy.controllers), hierarchy)
    return tuple(found.values())


def make(chosen: Iterable[Hierarchy], name: str, device_rules: tuple[str, ...] | None) -> tuple[dict[str, Path], bool]:
    """Make the groups called `name`. Returns the outer directory of each hierarchy's mount point in which that worked,
    and whether `device_rules` (None: nothing to limit) hold from now on."""
    made: dict[str, Path] = {}
    chosen = tuple(chosen)
    limited = device_rules is None
    for hierarchy in chosen:
        outer = hierarchy.own / name
        try:
            _make_one(hierarchy, hierarchy.own, outer)
            # Before the inner group is there: a group with children refuses `a` (devcgroup_update_access).
            if not limited and device_rules is not None:
                limited = _limit(hierarchy, outer, (*ALWAYS_ALLOWED, *device_rules))
            _make_one(hierarchy, outer, outer / INNER)
        except OSError:  # a read-only tree (we are in a container) or one without room: the sandbox does without
            remove((outer,))
            continue
        made[hierarchy.mount.point] = outer
    return made, limited


def _limit(hierarchy: Hierarchy, group: Path, rules: tuple[str, ...]) -> bool:
    """Limit `group` to `rules` if `hierarchy` is one that can; False if not."""
    if "devices" in hierarchy.controllers:
        _write(group / "devices.deny", "a")
        for rule in rules:
            _write(group / "devices.allow", rule)
        return True
    if hierarchy.mount.fstype == "cgroup2":
        with contextlib.suppress(OSError):  # a kernel without CONFIG_CGROUP_BPF: the caller says so
            device_filter.limit(group, rules)
            return True
    return False


def _make_one(hierarchy: Hierarchy, parent: Path, group: Path) -> None:
    group.mkdir()
    if "cpuset" in hierarchy.controllers:
        for file in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group, and no process may join it then
            _write(group / file, (parent / file).read_text(encoding="ascii"))
    if "cpu" in hierarchy.controllers:
        # A new group has no real-time budget, and no process in it any real-time policy, whatever its privileges.
        with contextlib.suppress(OSError):  # a kernel without CONFIG_RT_GROUP_SCHED, or a parent without a budget left
            _write(group / "cpu.rt_runtime_us", str(REALTIME))


def join(groups: Iterable[Path]) -> None:
    """Move the calling process into the inner group of each of `groups`."""
    for outer in groups:
        _write(outer / INNER / "cgroup.procs", "0")


def remove(groups: Iterable[Path]) -> None:
    """Remove the groups with all below them, which the sandbox may have made. None may hold a process any more."""
    for outer in groups:
        for directory, _, _ in os.walk(outer, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")


def leftovers(mounts: Iterable[Mount], is_leftover: Callable[[str], bool]) -> tuple[Path, ...]:
    """The outer groups of dead owners, in any hierarchy of `mounts`; `is_leftover` judges a group's name."""
    found = []
    for mount in mounts:
        if mount.fstype in ("cgroup", "cgroup2"):
            for directory, names, _ in os.walk(mount.point):
                ours = [name for name in names if is_leftover(name)]
                found += [Path(directory) / name for name in ours]
                names[:] = [name for name in names if name not in ours]
    return tuple(found)
