"""The host's mount table, sorted by what the embedded sandbox does with each mount. Mounts nothing."""

from __future__ import annotations

from collections.abc import Iterable

from profiler.kernel.mountinfo import Mount, below, mount_at

# Fresh ones are made where a system has them; elsewhere they show the host's state and are left out.
PSEUDO = frozenset({"proc", "sysfs", "devtmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "nsfs", "rpc_pipefs"})
# Kernel interfaces below /sys that exist once for the whole host: shown as the host has them, if it has them.
HOST_INTERFACES = frozenset(
    {"securityfs", "debugfs", "tracefs", "configfs", "pstore", "efivarfs", "fusectl", "selinuxfs"}
)
SPECIAL_TREES = ("/proc", "/sys", "/dev")


def visible(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    """Those that a path leads to: mounted over and hidden ones are left out, and those that cannot be looked at.

    Parents come before children. The kernel lists mounts by age (mnt_add_to_ns in fs/namespace.c), and an initramfs
    mounts /run before the root.
    """
    found = (mount for mount in mounts if mount_at(mount.point, follow=False) == mount.number)
    return tuple(sorted(found, key=lambda mount: mount.point))


def own_layers(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    """The mounts that hold files and so get a private layer, the root first.

    Not among them: pseudo file systems, trees made afresh, roots of containers below an engine's directory (a layer
    would keep the engine from unmounting them), swap-like autofs triggers.
    """
    chosen = []
    for mount in mounts:
        if mount.point != "/":
            if any(below(mount.point, tree) for tree in SPECIAL_TREES):
                continue
            if mount.fstype in PSEUDO | HOST_INTERFACES | {"overlay", "autofs", "binfmt_misc", "bpf", "hugetlbfs"}:
                continue
        chosen.append(mount)
    return tuple(chosen)
