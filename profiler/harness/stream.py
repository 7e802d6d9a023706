"""What a run writes to a stream, read to its end: the last bytes are kept, of all of it the length and a digest."""

from __future__ import annotations

import hashlib
import os
from typing import Final

from profiler.model import Written

TAIL: Final = 64 * 1024
"""Bytes of each stream that an Outcome keeps: the last ones."""


class Stream:
    """One stream of one run."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._size = 0
        self._digest = hashlib.sha256()

    def read(self, fd: int) -> bool:
        """Read once from a descriptor, waiting where it is one that blocks; False at its end. Raises OSError."""
        chunk = os.read(fd, TAIL)
        self._size += len(chunk)
        self._digest.update(chunk)
        self._kept += chunk
        del self._kept[:-TAIL]
        return bool(chunk)

    @property
    def tail(self) -> bytes:
        """The last bytes of what was read."""
        return bytes(self._kept)

    @property
    def written(self) -> Written:
        """Of all that was read."""
        return Written(self._size, self._digest.hexdigest())
