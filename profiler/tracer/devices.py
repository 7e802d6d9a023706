"""Which device nodes the workload uses, how and by whom: fanotify marks on the nodes themselves, never an open of ours.

Watched are the nodes below the workload's /dev when it starts (less what every container has), those that bind mounts
bring elsewhere, the nodes that it makes later, and those of a devtmpfs that it mounts. Block devices that it mounts are
told by the session: the kernel opens them without any file.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from profiler.catalogue.devices import SKIPPED_DIRECTORIES, is_common
from profiler.kernel.fanotify import (
    FAN_CLOSE_NOWRITE,
    FAN_CLOSE_WRITE,
    FAN_EVENT_ON_CHILD,
    FAN_OPEN,
    Event,
    FileHandle,
    Group,
    handle_of,
)
from profiler.kernel.mountinfo import mounts_of
from profiler.model import DeviceUse, Process

USES: Final = FAN_OPEN | FAN_CLOSE_WRITE | FAN_CLOSE_NOWRITE
PATIENCE_SECONDS: Final = 5.0  # for a node or mount to appear after its call was let go on
_UNKNOWN_KEPT = 4096  # events of files that may turn out to be a node that is being made
_USES_KEPT = 4096
_ORDER = "rwm"


@dataclass(frozen=True)
class _Node:
    path: str
    kind: str
    major: int
    minor: int
    made: bool
    bound: bool

    @classmethod
    def of(cls, path: str, found: os.stat_result, *, made: bool = False) -> _Node:
        """The node of this status that the workload sees at `path`."""
        kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
        bound = not made and not _is_same_node(path, found)
        return cls(path, kind, os.major(found.st_rdev), os.minor(found.st_rdev), made, bound)


@dataclass
class _Making:
    """A node that a call is about to make: its directory is watched until the node itself is."""

    directory: int
    name: str
    path: str
    rdev: int
    process: Process
    until: float = field(default_factory=lambda: time.monotonic() + PATIENCE_SECONDS)


@dataclass
class _Mounting:
    """A tree whose nodes will be there when the mount that makes them is."""

    pid: int
    path: str
    device: int | None  # st_dev before the mount
    until: float = field(default_factory=lambda: time.monotonic() + PATIENCE_SECONDS)


class DeviceWatch:
    """Watches the device nodes of the process `pid` and its descendants. A context manager.

    `who` turns a pid into a Process while an event is handled; the process may be gone by then. Where fanotify or
    some node's file system does not allow it, `losses` says so. Used by one thread at a time.
    """

    def __init__(self, pid: int, who: Callable[[int], Process]) -> None:
        self._who = who
        self._nodes: dict[FileHandle, _Node] = {}
        self._making: list[_Making] = []
        self._mounting: list[_Mounting] = []
        self._unknown: list[Event] = []
        self._uses: dict[tuple[_Node, int | str], tuple[Process, str, int]] = {}
        self._unwatched: set[str] = set()
        self._overflows = 0
        self._group: Group | None = None
        self._failure = ""
        try:
            self._group = Group()
        except OSError as error:
            self._failure = str(error)
        self._watch_tree(pid, "/dev")
        self._watch_mounts(pid)

    def __enter__(self) -> DeviceWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fd(self) -> int | None:
        """Readable when there is something to drain; None where nothing can be watched."""
        return None if self._group is None else self._group.fd

    def losses(self) -> dict[str, int]:
        """`devices_unwatched`: nodes whose use cannot be seen; `device_events`: times that events were lost."""
        found = {"devices_unwatched": len(self._unwatched), "device_events": self._overflows}
        return {name: count for name, count in found.items() if count}

    # -- what the session tells --------------------------------------------------------------------------------------

    def made(self, pid: int, path: str, mode: int, rdev: int, process: Process) -> None:
        """The thread `pid` is about to make the node `path` (absolute, as it sees it) by mknod(2): watch it from its
        beginning. To be called before the call goes on."""
        kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(mode))
        if kind is None or (kind == "c" and rdev == 0) or is_common(kind, os.major(rdev), os.minor(rdev)):
            return  # 0:0 is an overlay's whiteout, no device
        name = PurePosixPath(path).name
        try:
            directory = os.open(_outside(pid, os.path.dirname(path)), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120
        except OSError:
            return  # the call fails in the same way
        self._making.append(_Making(directory, name, path, rdev, process))
        if self._group is not None:
            # Another program may open the node before we can mark it: opens in its directory count meanwhile.
            with contextlib.suppress(OSError):
                self._group.mark(f"/proc/self/fd/{directory}/.", USES | FAN_EVENT_ON_CHILD)

    def mounting(self, pid: int, path: str) -> None:
        """The thread `pid` is about to mount a devtmpfs at `path`: its nodes are watched as soon as they are there."""
        with contextlib.suppress(OSError):
            self._mounting.append(_Mounting(pid, path, _device(pid, path)))

    def mounted(self, pid: int, source: str, *, read_only: bool, process: Process) -> None:
        """The thread `pid` mounts, or swaps to, the block device `source` (absolute): nothing when it is none."""
        try:
            found = os.stat(_outside(pid, source))  # noqa: PTH116
        except OSError:
            return
        if stat.S_ISBLK(found.st_mode):
            self._use(_Node.of(source, found), process, "r" if read_only else "rw")

    # -- events ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Handle what has happened since the last time; does not wait. Often, so that who did it still lives."""
        if self._making or self._mounting:
            self._settle(final=False)
        if self._group is None:
            return
        for event in self._group.events():
            if event.file is None:
                self._overflows += 1
            else:
                self._event(event)

    def _event(self, event: Event) -> None:
        assert event.file is not None
        node = self._nodes.get(event.file)
        if node is not None:
            self._use(node, self._who(event.pid), _access(event.mask))
        elif self._making and len(self._unknown) < _UNKNOWN_KEPT:
            self._unknown.append(event)

    def _use(self, node: _Node, process: Process, access: str) -> None:
        # an entry a process, so that another's can be told apart at the end; one a program when they are many
        key = (node, process.pid if len(self._uses) < _USES_KEPT else process.exe)
        known = self._uses.get(key)
        if known is None:
            self._uses[key] = (process, access, 1)
        else:
            self._uses[key] = (known[0] if known[0].exe else process, known[1] + access, known[2] + 1)

    def finish(self, complete: Callable[[Process], Process | None]) -> tuple[DeviceUse, ...]:
        """Drain the rest and return all uses: equal ones of one program are one, with a count.

        `complete` may tell more of a process that was gone when its event was read; None: it is not the workload's.
        """
        self._settle(final=True)
        self.drain()
        merged: dict[tuple[_Node, str, int], DeviceUse] = {}
        for (node, _), (process, access, times) in self._uses.items():
            known = complete(process)
            if known is None:
                continue
            # Still open at the end: how was never told.
            letters, count = access or "rw", times
            key = (node, known.exe, known.uid)
            before = merged.get(key)
            if before is not None:
                known, letters, count = before.process, before.access + letters, before.count + times
            merged[key] = DeviceUse(
                node.path, node.kind, node.major, node.minor,
                "".join(letter for letter in _ORDER if letter in letters), known, node.made, count, node.bound,
            )  # fmt: skip
        return tuple(merged.values())

    def close(self) -> None:
        """Take all marks away. Idempotent."""
        for making in self._making:
            os.close(making.directory)
        self._making.clear()
        if self._group is not None:
            self._group.close()
            self._group = None

    # -- marks -------------------------------------------------------------------------------------------------------

    def _settle(self, *, final: bool) -> None:
        """Mark what has appeared since; give up on what has not after a while."""
        now = time.monotonic()
        for mounting in list(self._mounting):
            try:
                there = _device(mounting.pid, mounting.path) != mounting.device
            except OSError:
                there, mounting.until = False, 0.0  # its process is gone
            if there:
                self._watch_tree(mounting.pid, mounting.path)
            if there or final or now > mounting.until:
                self._mounting.remove(mounting)
        settled = [making for making in self._making if self._appeared(making) or final or now > making.until]
        if not settled:
            return
        if self._group is not None:  # what was opened before the node's own mark stood
            self._unknown += [event for event in self._group.events() if event.file is not None]
        for making in settled:
            self._making.remove(making)
            self._unmark(making)
            os.close(making.directory)
        waiting, self._unknown = self._unknown, []
        for event in waiting:
            self._event(event)

    def _appeared(self, making: _Making) -> bool:
        try:
            found = os.stat(making.name, dir_fd=making.directory, follow_symlinks=False)
        except OSError:
            return False
        if not _is_node(found) or found.st_rdev != making.rdev:
            return False
        node = self._watch(making.name, making.directory, making.path, found, made=True)
        self._use(node, making.process, "m")
        return True

    def _unmark(self, making: _Making) -> None:
        """Stop watching the directory, unless another node is being made in it."""
        here = os.fstat(making.directory)
        others = (os.fstat(other.directory) for other in self._making)
        if self._group is None or any((o.st_dev, o.st_ino) == (here.st_dev, here.st_ino) for o in others):
            return
        with contextlib.suppress(OSError):
            self._group.unmark(f"/proc/self/fd/{making.directory}/.", USES | FAN_EVENT_ON_CHILD)

    def _watch_mounts(self, pid: int) -> None:
        """Mark the nodes that mounts bring elsewhere than below /dev: a node itself, or the host's whole /dev."""
        with contextlib.suppress(OSError):
            devtmpfs = os.stat("/dev").st_dev  # noqa: PTH116
            for mount in mounts_of(pid):
                if PurePosixPath(mount.point).is_relative_to("/dev"):
                    continue
                if mount.device == devtmpfs and mount.root == "/":
                    self._watch_tree(pid, mount.point)
                    continue
                with contextlib.suppress(OSError):
                    directory, _, name = _outside(pid, mount.point).rpartition("/")
                    self._watch_mount(directory, name, mount.point)

    def _watch_mount(self, directory: str, name: str, path: str) -> None:
        """Mark what is mounted at `name` if it is a node that not every container has. Raises OSError."""
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if _is_uncommon_node(found):
                self._watch(name, descriptor, path, found, made=False)
        finally:
            os.close(descriptor)

    def _watch_tree(self, pid: int, top: str) -> None:
        """Mark the nodes below `top` as `pid` sees it."""
        with contextlib.suppress(OSError):
            root = os.open(_outside(pid, top), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for directory, prefix, name, found in _nodes(root, top.rstrip("/")):
                    self._watch(name, directory, f"{prefix}/{name}", found, made=False)
            finally:
                os.close(root)

    def _watch(self, name: str, directory: int, path: str, found: os.stat_result, *, made: bool) -> _Node:
        node = _Node.of(path, found, made=made)
        try:
            if self._group is None:
                raise OSError(self._failure)
            handle = handle_of(name, directory)
            self._group.mark(name, USES, directory)
        except OSError:
            self._unwatched.add(path)
        else:
            node = self._nodes.setdefault(handle, node)
        return node


def _outside(pid: int, path: str) -> str:
    """A path of the process `pid` as one of ours."""
    return f"/proc/{pid}/root/{path.lstrip('/')}"


def _device(pid: int, path: str) -> int:
    return os.stat(_outside(pid, path)).st_dev  # noqa: PTH116


def _is_node(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)


def _is_uncommon_node(found: os.stat_result) -> bool:
    """Whether it is a device node, and one that not every container has."""
    kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
    return _is_node(found) and not is_common(kind, os.major(found.st_rdev), os.minor(found.st_rdev))


def _is_same_node(path: str, found: os.stat_result) -> bool:
    """Whether this host has that node, too, under the same path: only then can an engine be told to give it by name."""
    try:
        ours = os.stat(path)  # noqa: PTH116
    except OSError:
        return False
    return (stat.S_IFMT(ours.st_mode), ours.st_rdev) == (stat.S_IFMT(found.st_mode), found.st_rdev)


def _access(mask: int) -> str:
    """Empty while it is open: only closing tells how it was opened (FMODE_WRITE in include/linux/fsnotify.h)."""
    return ("rw" if mask & FAN_CLOSE_WRITE else "") + ("r" if mask & FAN_CLOSE_NOWRITE else "")


def _nodes(directory: int, prefix: str) -> Iterator[tuple[int, str, str, os.stat_result]]:
    """Every device node below an open directory that not every container has: its directory, that one's path, its
    name, its status. Symbolic links are not followed: what they lead to below /dev is found by itself."""
    with os.scandir(directory) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode) and name not in SKIPPED_DIRECTORIES:
            with contextlib.suppress(OSError):
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                try:
                    yield from _nodes(below, f"{prefix}/{name}")
                finally:
                    os.close(below)
        elif _is_uncommon_node(found):
            yield directory, prefix, name, found
