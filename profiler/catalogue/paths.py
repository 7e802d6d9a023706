"""Files below /proc and /sys that engines mask or make read-only, and files with an unchecked need. Data.

The lists are the defaults of runc's and Docker's specification (moby oci/defaults.go: MaskedPaths, ReadonlyPaths).
"""

from __future__ import annotations

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

# Writing "0 0 1" here as uid 0 needs SETFCAP in the opener's namespace, tested with cap_raised and so without any
# check event (kernel/user_namespace.c, verify_root_map).
ROOT_MAPS: tuple[str, ...] = ("uid_map",)

# A fresh instance of these in a child user namespace is refused while the container's own one is masked
# (fs/namespace.c, mount_too_revealing).
REVEALING_TYPES: frozenset[str] = frozenset({"proc", "sysfs"})
