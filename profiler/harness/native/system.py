"""The kernel's own file systems in the embedded sandbox: /proc, /sys and /dev, made afresh for its namespaces.

The same in the traced run and in every rerun; only the device nodes differ. Sources: proc(5), sysfs(5),
Documentation/filesystems/devpts.rst, namespaces(7), sysvipc(7), mq_overview(7).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from profiler.harness.native.cgroups import Hierarchy
from profiler.harness.native.mounts import HOST_INTERFACES
from profiler.harness.native.root import read_only
from profiler.harness.native.spec import Node
from profiler.kernel.mountinfo import Mount, below
from profiler.kernel.namespaces import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, mount

_SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC
_KERNEL = "proc/sys/kernel"
# Parameters that belong to the sandbox's own UTS and PID namespaces. All others are the host's: read-only. Those of the
# IPC namespace are so too: another such namespace has other entries of these names (ipc/ipc_sysctl.c, set_lookup),
# below which no mount of ours is reached, and who then remounts every mount, as bwrap does, fails.
_OWN_PARAMETERS = tuple(f"{_KERNEL}/{name}" for name in ("hostname", "domainname", "ns_last_pid"))
_PROC_OPTIONS = ("hidepid", "gid", "subset")


def mount_proc(root: Path, host: Iterable[Mount], *, own_network: bool) -> None:
    """A new /proc of this PID namespace, with the host's options; parameters of the host cannot be written.

    Called by the namespace's first process: procfs shows the PID namespace of who mounts it.
    """
    data = _proc_options(host)
    mount("proc", root / "proc", "proc", _SAFE, data)
    parameters = root / "proc/sys"
    mount(parameters, parameters, None, MS_BIND)
    for name in (*_OWN_PARAMETERS, *(("proc/sys/net",) if own_network else ())):
        with contextlib.suppress(FileNotFoundError):  # a kernel without that option
            mount(root / name, root / name, None, MS_BIND)
    read_only(parameters)
    trigger = root / "proc/sysrq-trigger"  # reboots the host; there with CONFIG_MAGIC_SYSRQ only
    if trigger.exists():
        mount(trigger, trigger, None, MS_BIND)
        read_only(trigger)


def keep_proc_visible(root: Path, host: Iterable[Mount]) -> None:
    """One /proc more, with nothing mounted below it and no path to it: `mount_dev` then covers the directory.

    In a user namespace of its own (rootless containers, `unshare --map-root-user --mount-proc`) a program may mount a
    new /proc only where some /proc of its mount namespace is fully visible (fs/namespace.c, mnt_already_visible), as
    the host's is, and the sandbox's is not, for parts of it are read-only mounts. It gets the name of a mount that
    `mount_dev` makes: who remounts all that is mounted finds a mount at every path.
    """
    mount("tmpfs", root / "dev", "tmpfs", _SAFE, "mode=755")
    covered = root / "dev/shm"
    covered.mkdir()
    mount("proc", covered, "proc", _SAFE, _proc_options(host))


def _proc_options(host: Iterable[Mount]) -> str:
    options = next((m.super_options for m in host if m.point == "/proc" and m.fstype == "proc"), ())
    return ",".join(option for option in options if option.partition("=")[0] in _PROC_OPTIONS)


def mount_sys(root: Path, host: Iterable[Mount], groups: Iterable[Hierarchy]) -> None:
    """A new, read-only /sys of this network namespace, as an engine gives; its sub-mounts as the host has them.

    `groups` are the hierarchies in which the sandbox has a group of its own: each is mounted anew, so that it shows
    that group as its root, and writable, for it is nobody else's.
    """
    sys = root / "sys"
    mount("sysfs", sys, "sysfs", _SAFE)
    host = tuple(host)
    groups = tuple(groups)
    for entry in host:
        target = root / entry.point.lstrip("/")
        if not below(entry.point, "/sys") or entry.point == "/sys" or not target.is_dir():
            continue
        if entry.fstype in HOST_INTERFACES:
            mount(entry.point, target, None, MS_BIND)
        elif entry.fstype == "bpf":
            mount("bpf", target, "bpf", _SAFE)  # each mount is an instance of its own
        elif entry.fstype == "tmpfs" and any(below(group.mount.point, entry.point) for group in groups):
            mount("tmpfs", target, "tmpfs", _SAFE, "mode=755")
            _copy_links(Path(entry.point), target)
            for group in groups:
                (root / group.mount.point.lstrip("/")).mkdir(exist_ok=True)
    for group in groups:
        target = root / group.mount.point.lstrip("/")
        mount("cgroup", target, group.mount.fstype, _SAFE, ",".join(group.controllers))
    read_only(sys)


def _copy_links(source: Path, target: Path) -> None:
    """The links of a version 1 tree, such as `cpu` to `cpu,cpuacct`."""
    for link in source.iterdir():
        if link.is_symlink():
            (target / link.name).symlink_to(link.readlink())


def mount_dev(root: Path, nodes: Iterable[Node], links: Iterable[tuple[str, str]], terminal: str | None) -> None:
    """A new /dev with exactly `nodes` and the standard entries; `terminal` (a host path) becomes /dev/console."""
    dev = root / "dev"
    mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755")
    for name in ("pts", "shm", "mqueue"):
        (dev / name).mkdir()
    group = "" if not Path("/dev/pts").exists() else f",gid={os.stat('/dev/pts').st_gid}"  # noqa: PTH116
    mount("devpts", dev / "pts", "devpts", MS_NOSUID | MS_NOEXEC, f"newinstance,ptmxmode=0666,mode=0620{group}")
    mount("tmpfs", dev / "shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    with contextlib.suppress(OSError):  # a kernel without POSIX message queues
        mount("mqueue", dev / "mqueue", "mqueue", _SAFE)
    for link, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (dev / link).symlink_to(f"/proc/self/{target}")
    (dev / "ptmx").symlink_to("pts/ptmx")
    for node in nodes:
        _make_node(root, node)
    for path, target in links:
        place = root / path.lstrip("/")
        if not place.is_symlink() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(target)
    if terminal is not None:
        console = dev / "console"
        console.touch()
        mount(terminal, console, None, MS_BIND)


def _make_node(root: Path, node: Node) -> None:
    place = root / node.path.lstrip("/")
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    kind = stat.S_IFBLK if node.kind == "b" else stat.S_IFCHR
    os.mknod(place, kind | 0o600, os.makedev(node.major, node.minor))
    os.chown(place, node.uid, node.gid)
    place.chmod(node.mode)
