"""What the runs of one `docker run` read from standard input."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from profiler.harness.stdin import Spool


class Input:
    """The standard input `source` (a file descriptor) for every run; recorded below `directory`.

    Not `wanted` (without `-i`): the workload does not get it, and it must not be read away.
    """

    def __init__(self, directory: Path, source: int, *, wanted: bool) -> None:
        self._spool = Spool(directory, source) if wanted else None
        self._was_fed = False
        self.has_no_terminal = wanted and not _is_terminal(source)
        """Then the client refuses `--tty`: with `-i` it wants our own standard input to be a terminal."""

    @contextmanager
    def fed(self) -> Iterator[int]:
        """For a traced run: the first gets it as it comes, the next what the first could read."""
        if self._spool is None:
            yield subprocess.DEVNULL
        elif self._spool.kind == "terminal" or not self._was_fed:
            self._was_fed = True
            with self._spool.feed() as fed:
                yield fed
        else:
            with self._spool.replay() as again:
                yield again.fileno()

    @contextmanager
    def replayed(self) -> Iterator[IO[bytes]]:
        """For a rerun: what the traced run could read."""
        if self._spool is None:
            with Path(os.devnull).open("rb") as nothing:
                yield nothing
        else:
            with self._spool.replay() as again:
                yield again

    def close(self) -> None:
        """Forget what was recorded. Idempotent."""
        if self._spool is not None:
            self._spool.close()


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False
