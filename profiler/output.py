"""Files that the user gets: written whole or not at all, with one error where that cannot be. Imports only errors."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from profiler.errors import UsageError


def check_writable(path: Path) -> None:
    """Find out, before anything runs, that `write` would fail. Leaves nothing behind.

    Raises UsageError when the directory is missing or not writable, or `path` is a directory or `-`.
    """
    if str(path) == "-":
        raise UsageError("-o -: standard output belongs to the workload", "name a file, for example -o manifest.json")
    if path.is_dir():
        raise UsageError(f"{path} is a directory", f"name a file in it, for example {path / 'manifest.json'}")
    if _is_special(path):
        return
    target = path.resolve()
    if not target.parent.is_dir():
        raise UsageError(f"{path}: there is no directory {target.parent}", f"make it first: mkdir -p {target.parent}")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise _refused(path, error) from error


def write(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all: a new file beside it, renamed over it. A device or FIFO is fed.

    Raises UsageError when the file system refuses.
    """
    try:
        if _is_special(path):
            path.write_text(text, encoding="utf-8")
        else:
            _replace(path.resolve(), text)
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be written: {error.strerror}", "name a file in a writable place with -o")


def _is_special(path: Path) -> bool:
    """Whether `path` is a device or FIFO, which a rename would replace instead of feeding."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _replace(target: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(file.fileno(), 0o666 & ~umask)  # mkstemp's 0600 is for secrets
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
