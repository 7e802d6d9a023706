"""What an AppArmor profile that the kernel holds denies as a whole, found by trying it in a process of our own.

A policy that knows a class of actions denies those for which a profile has no rule. Whether it knows them depends on
kernel, parser and the profile's `abi`, and no file of the kernel's tells it of a profile: so it is tried.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from profiler.kernel import confinement

_TRIED: Final[Mapping[str, Callable[[], None]]] = {
    "io_uring": confinement.make_polling_ring,
    "userns": confinement.make_user_namespace,
}
_PACKAGES: Final = str(Path(__file__).resolve().parents[2])
# A program of its own: a process with threads can make no user namespace, and a fork of ours would take locks along.
_TRIES: Final = "import sys; sys.path.insert(0, sys.argv[1]); from profiler.witness.confined import tries; tries()"
_SECONDS: Final = 60


def denied_classes(profile: str) -> frozenset[str]:
    """The classes of actions, by their names in apparmor.d(5), that `profile` denies as a whole.

    Only what was seen to be denied: none where `profile` is empty, or cannot be entered by this process.
    """
    if not profile:
        return frozenset()
    words = [sys.executable, "-I", "-S", "-c", _TRIES, _PACKAGES, profile]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=_SECONDS,
            env={"PATH": os.defpath},
        )
    except subprocess.SubprocessError:
        return frozenset()
    return frozenset(json.loads(done.stdout))


def tries() -> None:
    """The other program: enter the profile in the second argument, write what is denied there as JSON.

    A module answers EACCES (apparmor_userns_create, apparmor_uring_sqpoll), limits and switches have other errors.
    """
    confinement.enter(sys.argv[2])
    denied = [name for name, act in _TRIED.items() if _error_of(act) == errno.EACCES]
    sys.stdout.write(json.dumps(denied))


def _error_of(act: Callable[[], None]) -> int:
    """The errno of `act`, 0 when it succeeds. In a child of its own: a ring's thread forbids a user namespace."""
    pid = os.fork()
    if pid == 0:
        number = errno.ENOTRECOVERABLE  # whatever else goes wrong
        try:
            act()
            number = 0
        except OSError as error:
            number = error.errno or number
        finally:
            os._exit(number)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
