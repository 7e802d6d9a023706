"""The host's device nodes as privileges, and a recipe as the nodes and rules of one sandbox."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from profiler.catalogue.devices import is_common
from profiler.harness.native.spec import Node
from profiler.model import Device, DeviceClass, Privilege, Recipe

DEV = Path("/dev")
# Made afresh in every sandbox, in namespaces of its own.
_OWN = tuple(f"/dev/{name}" for name in ("ptmx", "console"))


@dataclass(frozen=True)
class Provision:
    """What a sandbox gets below /dev: nodes, symbolic links to them, and rules (None: no limit) on all nodes."""

    nodes: tuple[Node, ...]
    links: tuple[tuple[str, str], ...]
    rules: tuple[str, ...] | None


def host_nodes(dev: Path = DEV) -> tuple[Node, ...]:
    """Every device node below `dev`, by path. File systems mounted there (pts, shm, mqueue) are not looked at."""
    found = []
    for entry in _entries(dev, dev.stat().st_dev):
        status = entry.stat(follow_symlinks=False)
        kind = "b" if stat.S_ISBLK(status.st_mode) else "c" if stat.S_ISCHR(status.st_mode) else None
        if kind is not None:
            found.append(_node(entry.path, kind, status))
    return tuple(sorted(found, key=lambda node: node.path))


def broad_devices(nodes: Iterable[Node]) -> frozenset[Privilege]:
    """The privileges that stand for all of `nodes` but those that every sandbox has or makes."""
    return frozenset(Device(node.path) for node in nodes if node.path not in _OWN and not _is_common(node))


def provide(recipe: Recipe, nodes: tuple[Node, ...], dev: Path = DEV) -> Provision:
    """What `recipe` gives of the host's `nodes`. A device that the host does not have is not there.

    A recipe with every device of the host limits nothing, as `--privileged` does not: the workload may then also make
    and use nodes of numbers that have no node on this host.
    """
    # A recipe may name a link (/dev/disk/by-id/…): the node behind it is meant.
    devices = {os.path.realpath(privilege.path): privilege for privilege in recipe if isinstance(privilege, Device)}
    pools = [privilege for privilege in recipe if isinstance(privilege, DeviceClass)]
    chosen = tuple(
        node
        for node in nodes
        if node.path not in _OWN
        and (_is_common(node) or node.path in devices or any(_in_pool(node, pool) for pool in pools))
    )
    rules: tuple[str, ...] | None = None
    if not broad_devices(nodes) <= recipe:
        single = (f"{n.kind} {n.major}:{n.minor} {devices[n.path].access}" for n in chosen if n.path in devices)
        rules = (*single, *(pool.label for pool in pools))
    return Provision(chosen, tuple(_links(dev, {node.path for node in chosen})), rules)


def _node(path: str, kind: str, status: os.stat_result) -> Node:
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return Node(path, kind, major, minor, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


def _is_common(node: Node) -> bool:
    """Whether every sandbox has it, as every container has."""
    return is_common(node.kind, node.major, node.minor)


def _in_pool(node: Node, pool: DeviceClass) -> bool:
    return node.kind == pool.kind and node.major == pool.major and pool.minor in (None, node.minor)


def _entries(directory: Path, device: int) -> Iterator[os.DirEntry[str]]:
    """All entries below `directory` that are on the file system `device`. What vanishes meanwhile is left out."""
    try:
        with os.scandir(directory) as scan:
            entries = list(scan)
    except OSError:
        return
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            yield entry
        elif entry.stat(follow_symlinks=False).st_dev == device:
            yield from _entries(Path(entry.path), device)


def _links(dev: Path, present: set[str]) -> Iterator[tuple[str, str]]:
    """The host's links (disk/by-uuid/…) that lead to a node of `present`, with their targets as written."""
    for entry in _entries(dev, dev.stat().st_dev):
        if entry.is_symlink():
            target = str(Path(entry.path).readlink())
            if os.path.normpath(Path(entry.path).parent / target) in present:
                yield entry.path, target
