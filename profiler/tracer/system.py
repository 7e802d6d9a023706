"""What the workload writes below /sys, where the mounts of a container are read-only unless it is `--privileged`.

Files are opened to write by calls that are notified. Control groups are made by mkdir(2), which is not (there are far
too many directories): fanotify tells of those in the groups that the container has at its start.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from profiler.kernel.fanotify import FAN_CREATE, FAN_ONDIR, FAN_REPORT_DFID_NAME, FileHandle, Group, handle_of
from profiler.kernel.mountinfo import Mount, below, mount_at, mounts_of
from profiler.kernel.namespaces import is_apart
from profiler.model import Observation, Process, SystemWrite

SYSTEM: Final = "/sys"
_GROUPS: Final = frozenset({"cgroup", "cgroup2"})
# What a network namespace has of its own: the host's shows other devices under these names (net/core/net-sysfs.c).
_NETWORKS_OWN: Final = ("/sys/class/net", "/sys/devices/virtual/net")


class SystemWrites:
    """Watches the mounts `writable`, which the process `pid` finds writable only for the sake of this run. A context
    manager; without any mount it does nothing. Used by one thread at a time."""

    def __init__(self, pid: int, writable: Sequence[Mount]) -> None:
        self._mounts = {mount.number: mount for mount in writable}
        self._written: dict[str, SystemWrite] = {}
        self._directories: dict[FileHandle, Mount] = {}
        self._group: Group | None = None
        self._own_network = is_apart(pid, "net")
        self._own_groups = is_apart(pid, "cgroup")
        hierarchies = [mount for mount in writable if mount.fstype in _GROUPS]
        with contextlib.suppress(OSError):  # a kernel that tells no names: then a failing run is watched for them
            self._group = Group(FAN_REPORT_DFID_NAME) if hierarchies else None
            for mount in hierarchies:
                self._watch(pid, mount)

    def _watch(self, pid: int, mount: Mount) -> None:
        assert self._group is not None
        path = f"/proc/{pid}/root{mount.point}/."
        self._group.mark(path, FAN_CREATE | FAN_ONDIR)
        self._directories[handle_of(path)] = mount

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._group is not None:
            self._group.close()

    def opening(self, pid: int, path: str) -> None:
        """The thread `pid` is about to open the file `path` (absolute, as it sees it) to write; before that goes on."""
        if not self._mounts or not below(path, SYSTEM):
            return
        with contextlib.suppress(OSError):
            number = mount_at(f"/proc/{pid}/root{path}")
            if number is None:
                return
            mount = self._mounts.get(number)
            if mount is not None:
                self._written[path] = self._write(path, mount)
            elif copied := self._copied(pid, number):
                self._written.setdefault(path, self._write(path, copied, doubtful=True))

    def _copied(self, pid: int, number: int) -> Mount | None:
        """The mount of which `pid` has another in its place: a copy in a mount namespace of its own, or its own one."""
        theirs = next((mount for mount in mounts_of(pid) if mount.number == number), None)
        if theirs is None:
            return None
        same = (theirs.point, theirs.device, theirs.root)
        return next((one for one in self._mounts.values() if (one.point, one.device, one.root) == same), None)

    def _write(self, path: str, mount: Mount, *, doubtful: bool = False, made: bool = False) -> SystemWrite:
        place = _directory(mount.point) if mount.fstype in _GROUPS else self._host_file(path)
        return SystemWrite(place, mount.point, doubtful, self._own_groups, made)

    def _host_file(self, path: str) -> str:
        """The host's own file for `path`, links resolved: one sysfs shows them all, but for networks' devices."""
        resolved = os.path.realpath(path)
        networks = resolved.startswith(_NETWORKS_OWN) or "/net/" in resolved
        return resolved if Path(resolved).exists() and not (networks and self._own_network) else ""

    def finish(self, complete: Callable[[Process], Process | None]) -> tuple[Observation, ...]:
        """The control groups that the workload made, as calls. `complete` tells more of a process, or that it is not
        the workload's (None): a runtime of the engine's makes groups, too."""
        found: dict[str, Observation] = {}
        for event in self._group.events() if self._group is not None else ():
            mount = None if event.file is None else self._directories.get(event.file)
            process = complete(Process(event.pid, ""))
            if mount is None or process is None:
                continue
            path = f"{mount.point}/{event.name}"
            found[path] = Observation("mkdir", (f'"{path}"',), 0, path, process)
            self._written[path] = self._write(path, mount, made=True)
        return tuple(found.values())

    def written(self) -> dict[str, SystemWrite]:
        """By path, as the workload named it."""
        return self._written


def _directory(path: str) -> str:
    """`path` if this host has such a directory, else empty."""
    return path if Path(path).is_dir() else ""
