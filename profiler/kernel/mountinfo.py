"""The mount table of a process's mount namespace, as proc_pid_mountinfo(5) has it. Mounts nothing.

Light: the embedded sandbox's helper imports it at every run.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. `device` is the file system's, as stat(2) of a file in it has it (but for btrfs and other
    file systems with several); `root` the directory of it that is mounted; options without `rw`."""

    number: int
    device: int
    root: str
    point: str
    options: frozenset[str]
    fstype: str
    super_options: tuple[str, ...]


def unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo (space, tab, newline, backslash, `#`)."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def parse(text: str) -> tuple[Mount, ...]:
    """The mounts of a mountinfo file, in its order, which says nothing of parents and children."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        number, _parent, device, root, point, options = left.split(" ")[:6]
        major, _, minor = device.partition(":")
        # The source may hold escaped blanks or be empty: type and super options are first and last.
        fstype, *_source, super_options = right.split(" ")
        mounts.append(
            Mount(
                int(number),
                os.makedev(int(major), int(minor)),
                unescape(root),
                unescape(point),
                frozenset(options.split(",")),
                fstype,
                tuple(super_options.split(",")),
            )
        )
    return tuple(mounts)


def below(path: str, tree: str) -> bool:
    """Whether `path` is `tree` or lies below it; both absolute and without a trailing slash (but `/`)."""
    return path == tree or path.startswith(tree.rstrip("/") + "/")


def mount_at(path: str, *, follow: bool = True) -> int | None:
    """The number of the mount that `path` leads to; `follow`: by a last link, too. None where it cannot be looked at.

    O_PATH starts no automount and asks no file system to open.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except OSError:
        return None
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines():
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    finally:
        os.close(fd)
    return None


def mounts_of(pid: int | str = "self") -> tuple[Mount, ...]:
    """The mounts of a process's mount namespace, as far as its root shows them. Raises OSError."""
    return parse(Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))
