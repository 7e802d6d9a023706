"""What tells one content of a file from another. Light: the embedded sandbox's helper imports it."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Protocol


class Digest(Protocol):
    """A finished hash, as of `hashlib`."""

    def hexdigest(self) -> str:
        """Its hexadecimal digits."""


def fingerprint(content: Digest, mode: int, uid: int, gid: int) -> str:
    """A file's content, permission bits and owner in one word."""
    return f"{content.hexdigest()}:{stat.S_IMODE(mode):o}:{uid}:{gid}"


def stamp_of(path: str) -> tuple[int, ...] | None:
    """What changes when a file is written anew (its change time cannot be set: inode(7)); None when there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def digest_of(path: str) -> str:
    """The fingerprint of a regular file; empty for anything else."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return ""
            return fingerprint(hashlib.file_digest(file, "sha256"), status.st_mode, status.st_uid, status.st_gid)
    except OSError:
        return ""


def _without_waiting(path: str, flags: int) -> int:
    """A FIFO would make us wait for its writer."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
