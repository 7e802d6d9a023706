"""Files below /proc and /sys that engines mask or make read-only, and files with an unchecked need. Data.

The lists are the defaults of runc's and Docker's specification (moby oci/defaults.go: MaskedPaths, ReadonlyPaths).
"""

from __future__ import annotations

SYSCTL_ROOT = "/proc/sys/"

READ_ONLY: tuple[str, ...] = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
MASKED: tuple[str, ...] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)

CONTROL_GROUPS = "/sys/fs/cgroup"

# Notified only where they open something to write that may exist (seccomp/traced-calls.toml).
OPENS_FOR_WRITING: frozenset[str] = frozenset({"open", "openat", "openat2", "creat"})

# The parameters that belong to a namespace of the container's, and that engines therefore set for it before it starts
# (docker/cli opts.ValidateSysctl, runc libcontainer/configs/validate).
NAMESPACED_SYSCTLS: frozenset[str] = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)
NAMESPACED_SYSCTL_TREES: tuple[str, ...] = ("fs.mqueue.", "net.")

# Writing "0 0 1" here as uid 0 needs SETFCAP in the opener's namespace, tested with cap_raised and so without any
# check event (kernel/user_namespace.c, verify_root_map).
ROOT_MAPS: tuple[str, ...] = ("uid_map",)

# A fresh instance of these in a child user namespace is refused while the container's own one is masked
# (fs/namespace.c, mount_too_revealing).
REVEALING_TYPES: frozenset[str] = frozenset({"proc", "sysfs"})


def namespaced_sysctl(path: str) -> str | None:
    """The key of the parameter at `path`, as `--sysctl` names it; None for one that no engine sets."""
    if not path.startswith(SYSCTL_ROOT):
        return None
    name = path.removeprefix(SYSCTL_ROOT)
    if "." in name:  # an interface such as eth0.5: keys have no other separator than the dot
        return None
    key = name.replace("/", ".")
    return key if key in NAMESPACED_SYSCTLS or key.startswith(NAMESPACED_SYSCTL_TREES) else None
