"""What the user's volumes hold before the workload first runs, and a copy of it for every run after that.

A workload that finds what an earlier run left does less, and needs less: a database that is there is not made again.
And a run that fails for want of a privilege should not spoil the user's own files. So the first run has the user's
volumes, as `docker run` would; every other finds in their place what was there before it.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from docker.errors import NotFound

from profiler.harness.docker.arguments import DockerRun
from profiler.harness.docker.engine import Engine
from profiler.harness.docker.mounts import VOLUME, UserMount, mounts, with_source
from profiler.kernel.mountinfo import Mount, below, mounts_of
from profiler.leftovers import DISK, owner_tag
from profiler.model import Moved

MOST_ENTRIES = 20_000
MOST_BYTES = 256 << 20
# File systems without a device of their own that all the same keep files. Of the others the kernel makes up what they
# show (/proc, /sys, cgroups …): there is nothing in them to be copied.
_STORES = frozenset(
    {"tmpfs", "ramfs", "overlay", "nfs", "nfs4", "9p", "virtiofs", "fuse", "cifs", "smb3", "ceph", "zfs"}
)
_PROPAGATED = frozenset({"shared", "rshared", "slave", "rslave"})


class _Shared(Exception):
    """Why a place stays the same for all runs; empty where that goes without saying."""


@dataclass(frozen=True)
class _Kept:
    """One mount, its source as a path of this host, and a copy of the first state of that.

    `first` None: a named volume that held nothing; the engine fills it from the image, as it does an anonymous one.
    """

    mount: UserMount
    source: str
    first: Path | None


class Volumes:
    """Takes note of the first state when it is made. `close` removes all copies."""

    def __init__(self, engine: Engine, run: DockerRun) -> None:
        """Copies what the volumes of `run` hold now. What cannot be copied is told by `shared`; nothing is raised."""
        self._run = run
        self._home = DISK / f"{owner_tag()}-volumes"
        self._lock = threading.Lock()
        self._kept: list[_Kept] = []
        self.shared: dict[str, str] = {}  # the target of each writable place that is the same for all runs, and why
        every = tuple(mounts(run))
        through_engine = any(mount.is_engine for mount in every)
        for number, mount in enumerate(mount for mount in every if not mount.read_only):
            try:
                if through_engine and not mount.is_engine:
                    raise _Shared("who talks to the engine names this host's own paths to it")
                self._kept.append(_keep(engine, mount, self._home / "first" / str(number)))
            except _Shared as why:
                self.shared[mount.target] = str(why)
            except (OSError, subprocess.SubprocessError) as error:
                self.shared[mount.target] = f"it cannot be copied: {getattr(error, 'strerror', None) or error}"

    def notes(self) -> Iterator[str]:
        """One line for what a user may wonder about."""
        if self._kept:
            places = ", ".join(kept.mount.target for kept in self._kept)
            yield f"each rerun found in {places} what was there before the first run"
        for target, why in self.shared.items():
            if why:
                yield f"reruns found in {target} what earlier runs had left: {why}"

    def fresh(self, name: str) -> tuple[DockerRun, Moved]:
        """The user's command with new copies in place of its volumes, and where each place of this host is copied to.

        The copies of one `name` live until the next are made. Raises OSError when they cannot be.
        """
        home = self._home / name
        shutil.rmtree(home, ignore_errors=True)
        flags = list(self._run.flags)
        moved = []
        for number, kept in enumerate(self._kept):
            copy = None
            if kept.first is not None:
                copy = home / str(number)
                _copy(kept.first, copy)
                moved.append((kept.source, str(copy)))
            at = next(index for index, flag in enumerate(flags) if flag is kept.mount.flag)
            flags[at] = with_source(kept.mount, None if copy is None else str(copy))
        return replace(self._run, flags=tuple(flags)), tuple(moved)

    def close(self) -> None:
        """Remove the copies. Idempotent."""
        shutil.rmtree(self._home, ignore_errors=True)
        with suppress(OSError):  # another capprofile may be using it
            DISK.rmdir()


def _keep(engine: Engine, mount: UserMount, first: Path) -> _Kept:
    """Copy what `mount` holds now to `first`. Raises _Shared, OSError, SubprocessError."""
    if not _PROPAGATED.isdisjoint(word.rpartition("=")[2] for word in mount.options):
        raise _Shared("what is mounted there is shared with this host")
    source = os.path.abspath(mount.source)  # noqa: PTH100
    if mount.kind == VOLUME:
        directory = _directory_of(engine, mount.source)
        if directory is None or not os.listdir(directory):  # noqa: PTH208
            return _Kept(mount, "", None)
        source = directory
    first.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.path.lexists(source):
        _check(source)
        _copy(Path(source), first)
    else:  # the engine makes a directory
        first.mkdir(mode=0o755)
    return _Kept(mount, source, first)


def _directory_of(engine: Engine, volume: str) -> str | None:
    """Where the engine keeps a named volume on this host; None when there is none yet. Raises _Shared."""
    try:
        found = engine.api.inspect_volume(volume)
    except NotFound:
        return None
    if found.get("Driver") != "local" or found.get("Options"):
        raise _Shared("its volume driver keeps it elsewhere")
    return str(found["Mountpoint"])


def _check(source: str) -> None:
    """Raise _Shared unless `source` is a file or a tree that can be copied without losing anything, and soon."""
    status = os.stat(source)  # noqa: PTH116
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise _Shared("")  # a socket or a device: nobody expects a copy of it
    real = os.path.realpath(source)
    mounts = mounts_of()
    if not _is_store(mounts, real):
        raise _Shared("")
    if any(below(mount.point, real) and mount.point != real for mount in mounts):
        raise _Shared("other file systems are mounted in it")
    entries, size = 1, status.st_size if stat.S_ISREG(status.st_mode) else 0
    for directory, names, files in os.walk(real):
        entries += len(names) + len(files)
        for name in files:
            found = os.stat(os.path.join(directory, name), follow_symlinks=False)  # noqa: PTH116, PTH118
            if stat.S_ISSOCK(found.st_mode) or stat.S_ISFIFO(found.st_mode):
                raise _Shared(f"{name} in it is a way to another program")
            size += min(found.st_size, found.st_blocks * 512) if stat.S_ISREG(found.st_mode) else 0
        if entries > MOST_ENTRIES or size > MOST_BYTES:
            raise _Shared(f"it holds more than {MOST_ENTRIES:,} files or {MOST_BYTES >> 20} MiB")


def _is_store(mounts: tuple[Mount, ...], path: str) -> bool:
    """Whether the file system that `path` lies on keeps files, as far as can be told."""
    above = [mount for mount in mounts if below(path, mount.point)]
    kind = max(above, key=lambda mount: len(mount.point)).fstype if above else ""
    lines = Path("/proc/filesystems").read_text(encoding="ascii").splitlines()
    return kind in _STORES or kind.startswith("fuse.") or f"nodev\t{kind}" not in lines


def _copy(source: Path, copy: Path) -> None:
    """A copy with owners, times, links, extended attributes and holes. Raises OSError, SubprocessError."""
    copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(
        ["cp", "--archive", "--reflink=auto", "--sparse=auto", "--no-target-directory", f"{source}", f"{copy}"],
        check=True,
        capture_output=True,
    )
