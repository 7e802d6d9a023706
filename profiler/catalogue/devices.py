"""Device numbers with a meaning: the nodes that every container has, and the pools of which any node may be used.

Numbers are from Documentation/admin-guide/devices.txt. Data; who opened what is `tracer/devices.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# What an OCI runtime makes in every container and allows there (runtime-spec, config-linux.md, "Default Devices";
# runc's AllowedDevices): kind, major, minor; None stands for every minor.
COMMON: Final[frozenset[tuple[str, int, int | None]]] = frozenset(
    {
        ("c", 1, 3),  # null
        ("c", 1, 5),  # zero
        ("c", 1, 7),  # full
        ("c", 1, 8),  # random
        ("c", 1, 9),  # urandom
        ("c", 5, 0),  # tty
        ("c", 5, 1),  # console
        ("c", 5, 2),  # ptmx
    }
    | {("c", major, None) for major in range(136, 144)}  # pts: UNIX98_PTY_SLAVE_MAJOR and the seven after it
)
# Directories of /dev that hold no device nodes of ours: terminals, shared memory, queues, descriptors.
SKIPPED_DIRECTORIES: Final = frozenset({"pts", "shm", "mqueue", "fd", "hugepages"})


@dataclass(frozen=True)
class Pool:
    """Nodes of one driver of which the workload may get any: another in every run.

    `driver` is its name in /proc/devices, from which a dynamic major is found; `pattern` matches its nodes below /dev.
    """

    kind: str
    driver: str
    pattern: str
    major: int | None = None


POOLS: Final = (
    Pool("b", "loop", "loop[0-9]*", 7),
    Pool("b", "nbd", "nbd[0-9]*", 43),
    Pool("b", "device-mapper", "dm-[0-9]*"),
    Pool("b", "zram", "zram[0-9]*"),
    Pool("b", "md", "md[0-9]*", 9),
    Pool("c", "tty", "tty[0-9]*", 4),
    Pool("c", "vcs", "vcs*", 7),
    Pool("c", "ttyUSB", "ttyUSB[0-9]*", 188),
    Pool("c", "ttyACM", "ttyACM[0-9]*", 166),
)

# Nodes that hand out a free one of a pool. Without them programs try the pool's nodes in turn (libmount, losetup).
DISPENSERS: Final = {"/dev/loop-control": ("b", 7)}


def is_common(kind: str, major: int, minor: int) -> bool:
    """Whether every container has this node and may use it."""
    return (kind, major, minor) in COMMON or (kind, major, None) in COMMON


def pool_of(kind: str, major: int, drivers: frozenset[tuple[str, int, str]] = frozenset()) -> Pool | None:
    """The pool of a device number; `drivers` are the (kind, major, name) of /proc/devices, for dynamic majors."""
    for pool in POOLS:
        if pool.kind == kind and (pool.major == major or (kind, major, pool.driver) in drivers):
            return pool
    return None
