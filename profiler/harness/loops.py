"""Loop devices that a run leaves bound to files of its own, which go with it: nobody else would ever let go of them.

A workload that binds one and then fails, as it does in every rerun that lacks a privilege for what comes next, has no
way to clean up; a few such runs, and no free device is left on this host.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence

from profiler.kernel.filecaps import open_in_root
from profiler.kernel.loops import BoundLoop, bound, release
from profiler.kernel.mountinfo import mounts_of


def bound_below(layers: Sequence[str], directories: Sequence[str]) -> tuple[BoundLoop, ...]:
    """The loop devices whose file is one of a run's own: below one of the `layers` of its overlay (which shows their
    inodes on a device of its own), or below one of the `directories` that are mounted as they are."""
    return tuple(
        loop
        for loop in bound()
        if any(_is_at(layer, loop, overlaid=True) for layer in layers)
        or any(_is_at(directory, loop, overlaid=False) for directory in directories)
    )


def let_go(loops: Iterable[BoundLoop]) -> tuple[str, ...]:
    """Release what `bound_below` found, once the run is gone; returns the nodes.

    Where two runs of one image bind the same file of it, inode and path are the same, and only the device of the
    overlay tells them apart: while that is mounted the other run goes on.
    """
    waiting = tuple(loops)
    mounted = {mount.device for mount in mounts_of()} if waiting else frozenset()
    released = []
    for loop in waiting:
        if os.major(loop.device) == 0 and loop.device in mounted:
            continue
        with contextlib.suppress(OSError):
            if release(loop):
                released.append(loop.node)
    return tuple(released)


def _is_at(root: str, loop: BoundLoop, *, overlaid: bool) -> bool:
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fd = open_in_root(directory, loop.path)
    except OSError:
        return False
    finally:
        os.close(directory)
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    # an overlay has an anonymous device (fs/super.c, get_anon_bdev), whose major is 0
    where = os.major(loop.device) == 0 if overlaid else status.st_dev == loop.device
    return where and status.st_ino == loop.inode
