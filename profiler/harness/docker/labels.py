"""SELinux's labels where the engine sets them: which one the gate must carry, and what a container's was denied."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from profiler.catalogue.selinux import RELABELLED
from profiler.harness.docker.arguments import DockerRun, Flag
from profiler.harness.docker.engine import Engine
from profiler.harness.docker.mounts import BIND, UserMount, mounts
from profiler.kernel.audit import AuditLog
from profiler.kernel.selinux import ATTRIBUTE, label_of
from profiler.model import LabelDenial, Recipe, SecurityOption, type_of

SELINUX: Final = "selinux"  # as the engine names it
CONFIGURATION: Final = Path("/etc/selinux")

UNLABELLED: Final = SecurityOption("label=disable")

Denials = Callable[[], tuple[LabelDenial, ...]]


def is_labelled(engine: Engine) -> bool:
    """Whether the engine gives its containers labels, by which SELinux confines them."""
    return SELINUX in engine.security


def watchable(engine: Engine, recipe: Recipe) -> Recipe:
    """The recipe with which a run is watched: SELinux may keep a container from what its gate is steered with, and
    what it denies is told by an unwatched run."""
    return recipe | {UNLABELLED} if is_labelled(engine) else recipe


def file_label(configuration: Path = CONFIGURATION) -> str | None:
    """The label of files that every container may execute: where the engine takes it from, so that it is this host's.

    selinux_config(5) names the policy, whose lxc_contexts the labels (opencontainers/selinux, loadLabels). None where
    either does not.
    """
    with suppress(OSError):
        policy = _values(configuration / "config").get("SELINUXTYPE", "")
        return _values(configuration / policy / "contexts/lxc_contexts").get("file")
    return None


def _values(file: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in file.read_text(encoding="utf-8").splitlines() if line[:1] != "#")
    return {key.strip(): value.strip().strip('"') for key, equals, value in lines if equals}


def label(file: Path) -> None:
    """Give `file` that label, where the host has one: its own would keep containers, and perhaps the engine, from it.

    Quiet where that is refused: the engine then says what it cannot do.
    """
    context = file_label()
    if context is not None:
        with suppress(OSError):
            os.setxattr(file, ATTRIBUTE, context.encode() + b"\0")


def _counted(denials: Iterable[LabelDenial]) -> tuple[LabelDenial, ...]:
    """Equal ones but for the process's number as one, in their order."""
    first: dict[LabelDenial, LabelDenial] = {}
    for denial in denials:
        alike = replace(denial, process=replace(denial.process, pid=0))
        known = first.get(alike)
        first[alike] = denial if known is None else replace(known, count=known.count + 1)
    return tuple(first.values())


@contextmanager
def denials_of(engine: Engine, container: str) -> Iterator[Denials]:
    """What SELinux denies a container that was created and not started yet: what is given tells it, each denial once.

    A container's label has categories of its own, by which it is told from others. Nothing is told where it has no
    label, or where the kernel's records cannot be read.
    """
    own = engine.inspect(container).get("ProcessLabel") if is_labelled(engine) else None
    log = None
    if own:
        with suppress(OSError):
            log = AuditLog()
    try:
        if log is None:
            yield tuple
        else:
            heard = log
            yield lambda: _counted(one for one in heard.denials() if one.scontext == own)
    finally:
        if log is not None:
            log.close()


def to_relabel(run: DockerRun, types: frozenset[str]) -> tuple[UserMount, ...]:
    """The bind mounts of files of these types to which `-v` could give the containers' label, and does not."""
    return tuple(
        mount
        for mount in mounts(run)
        if mount.kind == BIND
        and mount.flag.name == "volume"
        and RELABELLED.isdisjoint(mount.options)
        and type_of(label_of(mount.source)) in types
    )


def relabelled(run: DockerRun, targets: frozenset[str]) -> DockerRun:
    """The command with the containers' shared label (`z`) for what is mounted at these targets."""
    own = {id(mount.flag): relabelling(mount) for mount in mounts(run) if mount.target in targets}
    return replace(run, flags=tuple(own.get(id(flag), flag) for flag in run.flags))


def relabelling(mount: UserMount) -> Flag:
    """The flag that mounts it with that label."""
    value = ":".join((mount.source, mount.target, ",".join((*mount.options, "z"))))
    return Flag("volume", value, ("-v", value))
