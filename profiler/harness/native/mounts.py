"""The host's mount table: parsed, and sorted by what the embedded sandbox does with each mount. Mounts nothing.

Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Fresh ones are made where a system has them; elsewhere they show the host's state and are left out.
PSEUDO = frozenset({"proc", "sysfs", "devtmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "nsfs", "rpc_pipefs"})
# Kernel interfaces below /sys that exist once for the whole host: shown as the host has them, if it has them.
HOST_INTERFACES = frozenset(
    {"securityfs", "debugfs", "tracefs", "configfs", "pstore", "efivarfs", "fusectl", "selinuxfs"}
)
SPECIAL_TREES = ("/proc", "/sys", "/dev")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. `root` is the directory of the file system that is mounted; options without `rw`."""

    number: int
    root: str
    point: str
    options: frozenset[str]
    fstype: str
    super_options: tuple[str, ...]


def unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo (space, tab, newline, backslash, `#`)."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def parse(text: str) -> tuple[Mount, ...]:
    """The mounts of a mountinfo file, in its order (parents before children)."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        number, _parent, _device, root, point, options = left.split(" ")[:6]
        # The source may hold escaped blanks or be empty: type and super options are first and last.
        fstype, *_source, super_options = right.split(" ")
        mounts.append(
            Mount(
                int(number),
                unescape(root),
                unescape(point),
                frozenset(options.split(",")),
                fstype,
                tuple(super_options.split(",")),
            )
        )
    return tuple(mounts)


def current() -> tuple[Mount, ...]:
    """The mounts of this process's mount namespace."""
    return parse(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))


def below(path: str, tree: str) -> bool:
    """Whether `path` is `tree` or lies below it; both absolute and without a trailing slash (but `/`)."""
    return path == tree or path.startswith(tree.rstrip("/") + "/")


def visible(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    """Those that a path leads to: mounted over and hidden ones are left out, and those that cannot be looked at."""
    return tuple(mount for mount in mounts if _mount_at(mount.point) == mount.number)


def _mount_at(path: str) -> int | None:
    """The id of the mount that `path` leads to. O_PATH starts no automount and asks no file system to open."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines():
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    finally:
        os.close(fd)
    return None


def own_layers(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    """The mounts that hold files and so get a private layer, the root first.

    Not among them: pseudo file systems, trees made afresh, roots of containers below an engine's directory (a layer
    would keep the engine from unmounting them), swap-like autofs triggers.
    """
    chosen = []
    for mount in mounts:
        if mount.point != "/":
            if any(below(mount.point, tree) for tree in SPECIAL_TREES):
                continue
            if mount.fstype in PSEUDO | HOST_INTERFACES | {"overlay", "autofs", "binfmt_misc", "bpf", "hugetlbfs"}:
                continue
        chosen.append(mount)
    return tuple(chosen)
