"""Which nodes of a device pool this host has."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from profiler.catalogue.devices import pool_of

_DRIVERS = Path("/proc/devices")


def drivers() -> frozenset[tuple[str, int, str]]:
    """The (kind, major, driver) rows of /proc/devices; dynamic majors differ from host to host."""
    found = set()
    kind = ""
    for line in _DRIVERS.read_text(encoding="ascii", errors="replace").splitlines():
        words = line.split()
        if line.startswith(("Character", "Block")):
            kind = line[0].lower()
        elif len(words) == 2 and words[0].isdigit():
            found.add((kind, int(words[0]), words[1]))
    return frozenset(found)


def present(kind: str, major: int, root: Path = Path("/dev")) -> tuple[str, ...] | None:
    """The nodes below `root` of the pool that (kind, major) belongs to, in natural order; None for what is no pool."""
    pool = pool_of(kind, major, drivers())
    if pool is None:
        return None
    nodes = [str(path) for path in root.glob(pool.pattern) if _is_of(path, kind, major)]
    return tuple(sorted(nodes, key=_natural))


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def _is_of(path: Path, kind: str, major: int) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    wanted = stat.S_ISBLK if kind == "b" else stat.S_ISCHR
    return wanted(status.st_mode) and os.major(status.st_rdev) == major
