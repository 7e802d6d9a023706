"""The capabilities that executed files carry: exec refuses such a file where the bounding set lacks them.

No check event tells it: the kernel compares the sets itself and answers EPERM (security/commoncap.c,
bprm_caps_from_vfs_caps). So each program that the witness sees executed is looked at, by its process while that lives,
else by its name below the workload's root.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final, Self

from profiler.kernel.filecaps import carried, open_in_root
from profiler.model import KernelCheck
from profiler.witness.events import CheckKind, Exec

SITE: Final = "bprm_caps_from_vfs_caps"


class ExecutedFiles:
    """Looks at what a workload executes. `anchor` is its first process, whose root directory is kept until `close`.

    A program of a process that is gone already, in another root than the first process's or named relative to its
    working directory, is not found: then nothing is said of it.
    """

    def __init__(self, anchor: int) -> None:
        self._root = os.open(f"/proc/{anchor}/root", os.O_PATH | os.O_CLOEXEC)
        self._namespace = self._namespace_of(anchor)
        self._kinds: dict[str, CheckKind] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def checks(self, event: Exec) -> tuple[CheckKind, ...]:
        """What the kernel compared when it executed this file, as checks that were granted; empty for most files.

        A file capability does not count in another user namespace than the one that the file system belongs to.
        """
        names = self._carried(event)
        if not names or self._namespace_of(event.pid) not in (self._namespace, None):
            return ()
        return tuple(self._kind(name) for name in sorted(names))

    def close(self) -> None:
        """Let the root go. Idempotent."""
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def _carried(self, event: Exec) -> frozenset[str]:
        with contextlib.suppress(OSError, ValueError):
            return _demanded(f"/proc/{event.pid}/exe")
        if not event.filename.startswith("/"):
            return frozenset()
        with contextlib.suppress(OSError, ValueError):
            fd = open_in_root(self._root, event.filename)
            try:
                return _demanded(f"/proc/self/fd/{fd}")
            finally:
                os.close(fd)
        return frozenset()

    def _kind(self, name: str) -> CheckKind:
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = CheckKind(KernelCheck(name, True, SITE, (SITE,)), "execve")
        return kind

    @staticmethod
    def _namespace_of(pid: int) -> int | None:
        try:
            return os.stat(f"/proc/{pid}/ns/user").st_ino  # noqa: PTH116
        except OSError:
            return None


def _demanded(path: str) -> frozenset[str]:
    """What the bounding set must hold for the file to start: nothing where its effective bit is not set, for then the
    program starts without."""
    found = carried(path)
    return found.permitted if found is not None and found.effective else frozenset()
