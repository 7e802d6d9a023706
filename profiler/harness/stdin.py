"""Standard input that several runs can read: recorded while the first run reads it, replayed to the others.

A regular file is opened anew for each run. A pipe or socket is copied through to the first run and into a file. A
terminal, a closed descriptor and /dev/null hold nothing to replay.
"""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from select import POLLIN, POLLOUT, poll
from typing import BinaryIO

from profiler.errors import UsageError

LIMIT = 256 * 1024 * 1024  # bytes recorded: the state directory may be on a tmpfs, that is in memory
_CHUNK = 64 * 1024


class Spool:
    """The standard input `source` (a file descriptor), for any number of runs. Its record is below `directory`.

    `kind` is `file`, `pipe`, `terminal` or `none`.
    """

    def __init__(self, directory: Path, source: int = 0) -> None:
        self._source = source
        self._directory = directory
        self._record: BinaryIO | None = None
        self._lost = False
        self._copier: threading.Thread | None = None
        self._wake: tuple[int, int] | None = None
        self._offset = 0
        self.kind = _kind(source)
        if self.kind == "file":
            self._offset = os.lseek(source, 0, os.SEEK_CUR)

    @contextmanager
    def feed(self) -> Iterator[int]:
        """The descriptor to hand to the first run as its standard input; start the run inside the `with` block.

        For a pipe this begins copying; it goes on after the block until the input or the run ends. Call it once.
        """
        if self.kind == "none":
            with Path(os.devnull).open("rb") as nothing:
                yield nothing.fileno()
            return
        if self.kind != "pipe":
            yield self._source
            return
        self._record = tempfile.TemporaryFile(prefix="stdin-", dir=self._directory)  # noqa: SIM115 (lives on)
        self._wake = os.pipe2(os.O_CLOEXEC)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(writer, False)
            self._copier = threading.Thread(target=self._copy, args=(writer,), name="stdin", daemon=True)
            self._copier.start()
            yield reader
        finally:
            # Only the run holds the reading end now: when it ends, the copier's next write fails and it ends too.
            os.close(reader)

    def replay(self) -> BinaryIO:
        """What the first run could read, from its beginning, as a new open file; the caller closes it.

        Raises UsageError if a pipe brought more than LIMIT bytes.
        """
        if self.kind == "file":
            # Through /proc the file is opened anew, with an offset of its own, even if it was renamed or removed.
            again = Path(f"/proc/self/fd/{self._source}").open("rb", buffering=0)  # noqa: SIM115 (the caller's)
            again.seek(self._offset)
            return again
        if self._record is None:
            return Path(os.devnull).open("rb")
        if self._lost:
            raise UsageError(
                f"standard input is longer than {LIMIT >> 20} MiB: too much to keep for the reruns",
                "give it as a file (< FILE) instead of a pipe",
            )
        self._record.flush()
        return Path(f"/proc/self/fd/{self._record.fileno()}").open("rb")

    def close(self) -> None:
        """End the copying and remove the record. Idempotent."""
        if self._wake is not None and self._copier is not None:
            os.write(self._wake[1], b"x")
            self._copier.join()
            for end in self._wake:
                os.close(end)
            self._wake = self._copier = None
        if self._record is not None:
            self._record.close()
            self._record = None

    def _copy(self, writer: int) -> None:
        """From the source to the run and to the record, until either end is closed or `close` wakes us."""
        assert self._wake is not None
        try:
            while self._ready(self._source, POLLIN):
                chunk = os.read(self._source, _CHUNK)
                if not chunk:
                    return
                self._keep(chunk)
                while chunk and self._ready(writer, POLLOUT):
                    with suppress(BlockingIOError):
                        chunk = chunk[os.write(writer, chunk) :]
                if chunk:
                    return
        except OSError:
            return  # the run ended without reading everything (EPIPE), as runs may
        finally:
            os.close(writer)

    def _ready(self, descriptor: int, event: int) -> bool:
        """Wait until `descriptor` is ready for `event` (or broken, which the next call tells); False when woken."""
        assert self._wake is not None
        poller = poll()
        poller.register(self._wake[0], POLLIN)
        poller.register(descriptor, event)
        return self._wake[0] not in dict(poller.poll())

    def _keep(self, chunk: bytes) -> None:
        assert self._record is not None
        if self._lost or self._record.tell() + len(chunk) > LIMIT:
            self._lost = True
            return
        try:
            self._record.write(chunk)
            self._record.flush()
        except OSError:  # the state directory is full: the first run still gets everything
            self._lost = True


def _kind(source: int) -> str:
    try:
        status = os.fstat(source)
    except OSError:
        return "none"
    if stat.S_ISREG(status.st_mode):
        return "file"
    if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
        return "pipe"
    return "terminal" if os.isatty(source) else "none"
