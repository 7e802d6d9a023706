"""Loop devices and swap areas that a run leaves on files of its own, which go with it: nobody else lets go of them.

A workload that binds a device and then fails, as it does in every rerun that lacks a privilege for what comes next, has
no way to clean up; a few such runs, and no free device is left on this host. What it has switched on as swap would even
stay in use.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from profiler.kernel.filecaps import open_in_root
from profiler.kernel.loops import BoundLoop, bound, nodes_of, release
from profiler.kernel.mountinfo import mounts_of
from profiler.kernel.swaps import still_on, swap_files, swapoff, swapoff_below


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
    """Release what `bound_below` found, once the run is gone, and what was bound to files on it; returns the nodes.

    A swap area that is still on would hold its device for good, so it is switched off first. Where two runs of one
    image bind the same file of it, inode and path are the same, and only the device of the overlay tells them apart:
    while that is mounted the other run goes on. (A directory of the user's stays mounted, on a tmpfs as on a disk.)
    """
    waiting = tuple(loops)
    overlays = {mount.device for mount in mounts_of() if mount.fstype == "overlay"} if waiting else frozenset()
    released = []
    for loop in _innermost_first([w for w in waiting if w.device not in overlays]):
        with contextlib.suppress(OSError):
            _swap_off(loop)
        with contextlib.suppress(OSError):
            if release(loop):
                released.append(loop.node)
    return tuple(released)


def swap_off_below(directories: Iterable[str]) -> None:
    """Switch off the swap files below directories that are a run's own: nobody could remove them while they are on."""
    files = swap_files()
    for path in directories if files else ():
        with contextlib.suppress(OSError):
            directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                swapoff_below(directory, files)
            finally:
                os.close(directory)


def remove_layers(store: Path) -> None:
    """Remove the directory of an embedded sandbox that is gone, and let go of what was bound to files in its layers
    (the upper ones are at `*/upper`). Quiet, also where something cannot be removed."""
    uppers = [str(upper) for upper in store.glob("*/upper")]
    loops = bound_below(uppers, []) if uppers else ()
    shutil.rmtree(store, ignore_errors=True)
    let_go(loops)


def _innermost_first(loops: Sequence[BoundLoop]) -> list[BoundLoop]:
    """`loops`, after those whose files are on a file system on one of them."""
    found = list(loops)
    everybody = bound() if found else ()
    for loop in found:  # grows on the way
        found += [inner for inner in everybody if inner not in found and inner.device in _devices(loop)]
    return found[::-1]


def _devices(loop: BoundLoop) -> set[int]:
    """The device numbers of a loop device and its partitions, as stat(2) has them of files on them."""
    return {os.stat(node).st_rdev for node in nodes_of(loop.node)}  # noqa: PTH116


def _swap_off(loop: BoundLoop) -> None:
    """Switch off what is a swap area on the device itself, or a file on the file system that it is still in use for."""
    for node in nodes_of(loop.node):
        swapoff(node)
        files = swap_files()
        if files:
            with still_on(node) as root:
                if root is not None:
                    swapoff_below(root, files)


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
