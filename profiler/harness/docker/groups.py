"""Control groups that a container makes in the host's tree, which its engine does not remove with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def leaving_none(groups: Iterable[str]) -> Iterator[None]:
    """Those of `groups` (their paths) that are not there at the beginning are removed at the end, with all below them.

    A group in which a process still lives stays (cgroups(7)).
    """
    absent = [group for group in groups if not Path(group).is_dir()]
    try:
        yield
    finally:
        for group in absent:
            for directory, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    os.rmdir(directory)  # noqa: PTH106
