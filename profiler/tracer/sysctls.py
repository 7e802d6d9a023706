"""What the workload made of the kernel parameters of its own namespaces: their values when it has ended."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from profiler.catalogue.paths import SYSCTL_ROOT, namespaced_sysctl
from profiler.kernel import namespaces
from profiler.model import Observation

# Files below /proc/sys answer for the namespaces of who opens them (net/sysctl_net.c net_ctl_header_lookup,
# ipc/ipc_sysctl.c set_lookup), not for those of the process in whose /proc/PID/root they are looked up.
_KINDS: Final = ("net", "ipc")


class Sysctls:
    """A context manager that keeps the namespaces of `pid` readable, also when all of its processes have ended.

    Parameters of a namespace that is this process's own as well are the host's, and never told.
    """

    def __init__(self, pid: int) -> None:
        self._kept: dict[str, int] = {}
        for kind in _KINDS:
            with suppress(OSError):  # a process that is gone
                if namespaces.is_apart(pid, kind):
                    self._kept[kind] = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._kept:
            os.close(self._kept.popitem()[1])

    def values(self, observations: Iterable[Observation]) -> dict[str, str]:
        """The values (by key, as `--sysctl` takes them) of the parameters that the observed calls opened to write."""
        keys = dict.fromkeys(
            key
            for one in observations
            if one.path is not None and (one.result or 0) >= 0 and (key := namespaced_sysctl(one.path)) is not None
        )
        found: dict[str, str] = {}
        for kind, namespace in self._kept.items():
            wanted = [key for key in keys if (kind == "net") == key.startswith("net.")]
            if wanted:
                # setns(2) of these two is a thread's own affair: ours ends with it
                reader = threading.Thread(target=_read, args=(namespace, wanted, found), name="sysctls")
                reader.start()
                reader.join()
        return found


def _read(namespace: int, keys: Iterable[str], found: dict[str, str]) -> None:
    with suppress(OSError):  # nobody may enter it: then there is nothing to tell
        namespaces.setns(namespace)
        for key in keys:
            with suppress(OSError, UnicodeDecodeError):
                text = Path(SYSCTL_ROOT, key.replace(".", "/")).read_text("ascii")
                found[key] = " ".join(text.split())
