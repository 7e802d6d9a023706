"""Seccomp profiles for recipes that say something of calls: the engine's own filter, opened or narrowed, as files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from profiler import output
from profiler.leftovers import STATE, owner_tag
from profiler.model import AllowList, Recipe, capability_names, only_calls, opened_calls
from profiler.witness.filter import profile_with


class Profiles:
    """Writes profiles while recipes are tried, and the one that stays. A context manager: leaving removes the tried.

    `filter_of` gives the engine's own filter for a set of capabilities (`Sandbox.filter_of`).
    """

    def __init__(self, filter_of: Callable[[frozenset[str]], bytes | None]) -> None:
        self._filter_of = filter_of
        self._directory = STATE / f"{owner_tag()}-seccomp"
        self._known: dict[tuple[frozenset[str], frozenset[str], AllowList | None], Path] = {}
        self._lock = threading.Lock()  # reruns side by side ask at the same time

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    def path_of(self, recipe: Recipe) -> str:
        """A profile for trying `recipe`, which says something of system calls. May be called from several threads."""
        key = (capability_names(recipe), opened_calls(recipe), only_calls(recipe))
        with self._lock:
            if key not in self._known:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                path = self._directory / f"{len(self._known)}.json"
                path.write_text(self._text(recipe), encoding="utf-8")
                self._known[key] = path
            return str(self._known[key])

    def keep(self, recipe: Recipe, path: Path) -> None:
        """Write the profile of the final recipe to `path`. Raises UsageError when that cannot be written."""
        output.write(path, self._text(recipe))

    def _text(self, recipe: Recipe) -> str:
        program = self._filter_of(capability_names(recipe))
        assert program is not None, "a recipe has calls only where the engine installs a filter"
        return json.dumps(profile_with(program, opened_calls(recipe), only_calls(recipe)), indent=2) + "\n"


def place_of(manifest: Path | None) -> Path:
    """Where the final profile goes: beside the manifest; where there is none into the working directory, or into a new
    one for temporary files if that cannot be written."""
    if manifest is not None:
        return manifest.with_suffix(".seccomp.json")
    directory = Path() if os.access(".", os.W_OK) else Path(tempfile.mkdtemp(prefix="capprofile-"))
    return directory / "capprofile.seccomp.json"
