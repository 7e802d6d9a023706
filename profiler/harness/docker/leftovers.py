"""Removes what a killed run left in Docker's room: its containers, by their label, and its state directories."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from profiler.errors import ProfilerError
from profiler.harness.docker.arguments import parse
from profiler.harness.docker.engine import Engine
from profiler.harness.docker.gate import STATE_PLACES
from profiler.harness.loops import remove_layers
from profiler.kernel.mountinfo import mounts_of
from profiler.leftovers import is_leftover


def clean_leftovers() -> tuple[str, ...]:
    """Remove containers and state directories whose owner is gone; returns the names of what was removed.

    Quiet when there is no engine, or nothing to remove.
    """
    removed: list[str] = []
    with suppress(ProfilerError):
        engine = Engine(parse(("docker", "run", "none")))
        try:
            removed += clean_engine(engine)
        finally:
            engine.close()
    for place in STATE_PLACES:
        for directory in place.glob("*"):
            if is_leftover(directory.name) and not _holds_mount(directory):
                remove_layers(directory)
                removed.append(str(directory))
        with suppress(OSError):
            place.rmdir()
    return tuple(removed)


def clean_engine(engine: Engine) -> list[str]:
    """Remove this engine's containers whose owner is gone. Raises ProfilerError."""
    abandoned = [container for container, tag in engine.labelled().items() if is_leftover(tag)]
    for container in abandoned:
        engine.remove(container)
    return [f"container {container[:12]}" for container in abandoned]


def _holds_mount(directory: Path) -> bool:
    """Whether something is mounted below: removing would go through it."""
    return any(Path(mount.point).is_relative_to(directory) for mount in mounts_of())
