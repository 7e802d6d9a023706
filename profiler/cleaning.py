"""Removes what killed runs left: containers, tracefs instances, kprobes, AppArmor profiles, state, control groups.

Things whose owner still runs are left alone (`leftovers`). Each room knows its own things; here they are only called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from profiler import apparmor
from profiler.errors import HostError, ProfilerError
from profiler.harness.docker.leftovers import clean_leftovers as clean_containers
from profiler.harness.native import sandbox as native
from profiler.leftovers import DISK, STATE, is_leftover
from profiler.witness.probes import check_pids
from profiler.witness.tracefs import CheckWitness

# Containers first: they hold the files in the state directories.
_CLEANERS: Final[tuple[Callable[[], Iterable[str]], ...]] = (
    clean_containers,
    apparmor.clean_leftovers,
    CheckWitness.clean_leftovers,
    native.clean_leftovers,
)


def everything() -> tuple[str, ...]:
    """Remove all of it; the names of what was removed. HostError when something cannot be, the user is not root,
    or it cannot be told from here who is still alive."""
    if os.geteuid() != 0:
        raise HostError("only root can remove what killed runs left", "run it with sudo")
    check_pids()
    try:
        return tuple(name for cleaner in _CLEANERS for name in cleaner())
    except OSError as error:
        raise HostError(f"what a killed run left cannot be removed: {error}", "remove it by hand") from error


def before_run() -> None:
    """The same before a run, but quick where nothing was left, and what cannot be removed is no reason not to run.

    HostError where it cannot be told from here who is still alive: there nothing can be watched either.
    Containers of an engine that is used anyway are its sandbox's to look for. Here they are looked for only where a
    dead owner's state directory tells that there may be some.
    """
    check_pids()
    with suppress(ProfilerError, OSError):
        CheckWitness.clean_leftovers()
    with suppress(OSError):
        apparmor.clean_leftovers()
    with suppress(ProfilerError, OSError):
        if any(is_leftover(path.name) for base in (STATE, DISK) if base.is_dir() for path in base.iterdir()):
            everything()
