"""Loop devices: which are bound to what, and letting go. Sources: loop(4), linux/loop.h, drivers/block/loop.c."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# linux/loop.h
LOOP_CLR_FD: Final = 0x4C01
LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO64 = struct.Struct("QQ216x")  # struct loop_info64 with lo_device and lo_inode

_SYS = Path("/sys/block")


@dataclass(frozen=True)
class BoundLoop:
    """A loop device `node` and its backing file: `path` below the root of its own mount, where that is out of sight;
    `device` and `inode` as stat(2) of the file has them."""

    node: str
    path: str
    device: int
    inode: int


def bound() -> tuple[BoundLoop, ...]:
    """Every loop device of this host that is bound to a file and can be asked."""
    found = []
    for entry in sorted(_SYS.glob("loop*/loop/backing_file")):
        node = f"/dev/{entry.parent.parent.name}"
        with contextlib.suppress(OSError):  # let go of meanwhile, or there is no node
            path = os.fsdecode(entry.read_bytes()).rstrip("\n")
            with _opened(node) as fd:
                found.append(BoundLoop(node, path, *_backing(fd)))
    return tuple(found)


def nodes_of(node: str) -> tuple[str, ...]:
    """A loop device and those of its partitions whose nodes are here."""
    partitions = (Path("/dev") / entry.parent.name for entry in (_SYS / Path(node).name).glob("*/partition"))
    return (node, *sorted(str(partition) for partition in partitions if partition.is_block_device()))


def release(loop: BoundLoop) -> bool:
    """Let go of the file, if the device is still bound to it; one that is in use is let go of with its last user.

    False when it is bound to something else or to nothing. Raises OSError.
    """
    with _opened(loop.node) as fd:
        try:
            if _backing(fd) != (loop.device, loop.inode):
                return False
            fcntl.ioctl(fd, LOOP_CLR_FD)
        except OSError as error:
            if error.errno == errno.ENXIO:  # bound to nothing
                return False
            raise
    return True


@contextlib.contextmanager
def _opened(node: str) -> Iterator[int]:
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _backing(fd: int) -> tuple[int, int]:
    device, inode = _LOOP_INFO64.unpack(fcntl.ioctl(fd, LOOP_GET_STATUS64, bytes(_LOOP_INFO64.size)))
    return device, inode
