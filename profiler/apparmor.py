"""AppArmor profiles in the kernel while they are tried: loads them, unloads them, and removes what killed runs left."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from profiler.errors import HostError
from profiler.leftovers import is_leftover, owner_tag

PARSER: Final = "apparmor_parser"
SECURITYFS: Final = Path("/sys/kernel/security/apparmor")  # Documentation/admin-guide/LSM/apparmor.rst, apparmorfs
_PLACES: Final = "/usr/sbin:/sbin"  # where the parser is, also for a user whose PATH has no sbin


def parser() -> str | None:
    """The path of the program that loads profiles; None where there is none, or no AppArmor to load them into."""
    if not (SECURITYFS / ".replace").exists():
        return None
    return shutil.which(PARSER) or shutil.which(PARSER, path=_PLACES)


def knows(program: str, rule: str) -> bool:
    """Whether the parser `program` has such a rule in its language. Loads nothing."""
    return _parsed(program, f"profile capprofile {{ {rule} }}", "--skip-kernel-load").returncode == 0


class Loaded:
    """Profiles of ours that are loaded. A context manager: leaving it unloads them."""

    def __init__(self, program: str) -> None:
        """`program` is the parser's path."""
        self._program = program
        self._names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._names:
            unload(self._names.pop())

    def name(self) -> str:
        """The name that the next profile must have."""
        return f"{owner_tag()}-apparmor-{len(self._names)}"

    def load(self, text: str) -> None:
        """Load the profile `text`, whose name is `name()`. Raises HostError with the parser's words."""
        self._names.append(self.name())  # before it is there: an interruption shall not leave it behind
        done = _parsed(self._program, text, "--replace")
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise HostError(f"{PARSER} refuses the profile: {said[-1] if said else f'exit code {done.returncode}'}")


def _parsed(program: str, text: str, option: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program, option, "--skip-cache"],
        input=text.encode(),
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )


def unload(name: str) -> None:
    """Take a profile out of the kernel; one that is not there is no error. What it confined goes on unconfined."""
    try:
        (SECURITYFS / ".remove").write_text(name, encoding="ascii")
    except FileNotFoundError:  # no such profile, or no AppArmor
        return


def clean_leftovers() -> tuple[str, ...]:
    """Unload the profiles whose owner is gone; their names. Raises OSError when the kernel refuses."""
    try:
        lines = (SECURITYFS / "profiles").read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    names = [name for name in (line.partition(" (")[0] for line in lines) if is_leftover(name)]
    for name in names:
        unload(name)
    return tuple(f"AppArmor profile {name}" for name in names)
