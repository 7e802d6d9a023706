"""How dangerous each privilege is, and why: what an attacker who owns the workload gains from it.

The synthesizer chooses the least dangerous set, so only the order of weights matters, and sums: whatever the kernel
accepts *instead of* SYS_ADMIN must together stay below SYS_ADMIN. The scale: 10 is a nuisance, 100 helps against the
container's own users, 300 reaches other containers or the network, 1000 and more is root on the host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from profiler.catalogue.paths import CONTROL_GROUPS
from profiler.model import (
    AllowList,
    BindMount,
    Capability,
    Device,
    DeviceClass,
    Privilege,
    SecurityOption,
    Syscalls,
    Sysctl,
)


@dataclass(frozen=True)
class Danger:
    """A weight (larger is worse) and the reason for it."""

    weight: int
    reason: str


CAPABILITIES: dict[str, Danger] = {
    "SYS_MODULE": Danger(2000, "code of the attacker's runs in the host's kernel"),
    "SYS_ADMIN": Danger(1500, "mounts, cgroups and namespaces offer many known ways out of a container"),
    "SYS_RAWIO": Danger(1200, "physical memory and I/O ports lie open: the kernel itself can be overwritten"),
    "SYS_PTRACE": Danger(450, "takes over every process that shares its pid namespace, whatever its user"),
    "MAC_ADMIN": Danger(420, "replaces the profile that confines it"),
    "SYS_BOOT": Danger(400, "reboots the host, or boots another kernel"),
    "MAC_OVERRIDE": Danger(380, "ignores the labels that confine it"),
    "BPF": Danger(350, "feeds the kernel's verifier, the source of many kernel exploits"),
    "NET_ADMIN": Danger(
        250, "reroutes and filters traffic, and reaches netfilter and traffic control, rich in kernel bugs"
    ),
    "DAC_OVERRIDE": Danger(245, "reads and changes every file that it can see, whoever owns it"),
    "SYS_TIME": Danger(240, "shifts the clock of the whole host: certificates, logs and leases go wrong"),
    "CHOWN": Danger(225, "makes every file that it can see its own"),
    "FOWNER": Danger(220, "opens every file that it can see with chmod"),
    "AUDIT_CONTROL": Danger(210, "blinds the host's audit log"),
    "PERFMON": Danger(200, "watches the kernel and every process: leaks addresses and secrets"),
    "DAC_READ_SEARCH": Danger(195, "reads every file, by handle even outside the container's own root"),
    "CHECKPOINT_RESTORE": Danger(180, "reads other processes' memory maps and forges pids"),
    "SETFCAP": Danger(175, "leaves programs with file capabilities behind on shared file systems"),
    "SYS_RESOURCE": Danger(170, "starves the host: no limit on memory locks, processes, queues or disk quota holds"),
    "MKNOD": Danger(160, "makes nodes for whatever device its cgroup allows"),
    "SYSLOG": Danger(150, "reads the host's kernel log and kernel addresses, the first step of a kernel exploit"),
    "SETUID": Danger(145, "becomes any user of the container, and of every shared file system"),
    "SETGID": Danger(130, "joins any group of the container, and of every shared file system"),
    "NET_RAW": Danger(120, "spoofs and sniffs packets on its network: ARP and DNS of its neighbours"),
    "IPC_OWNER": Danger(110, "reads and writes every shared memory segment of its IPC namespace"),
    "SYS_NICE": Danger(100, "starves the host's other work with real-time priority"),
    "LINUX_IMMUTABLE": Danger(95, "makes files undeletable, or protected files writable"),
    "SYS_CHROOT": Danger(90, "leaves a chroot jail inside the container"),
    "AUDIT_READ": Danger(88, "reads the host's audit log"),
    "SYS_TTY_CONFIG": Danger(85, "takes over virtual terminals of the host"),
    "SYS_PACCT": Danger(80, "fills a file of its choice with the host's process accounting"),
    "SETPCAP": Danger(70, "moves capabilities of its bounding set about, and loosens securebits"),
    "FSETID": Danger(60, "leaves setuid and setgid programs behind after changing them"),
    "KILL": Danger(50, "ends every process in its pid namespace"),
    "IPC_LOCK": Danger(40, "pins memory until the host has none left"),
    "LEASE": Danger(35, "stalls other programs' opens for as long as lease-break-time"),
    "AUDIT_WRITE": Danger(30, "forges records in the host's audit log"),
    "BLOCK_SUSPEND": Danger(20, "keeps the machine awake"),
    "WAKE_ALARM": Danger(15, "wakes the machine"),
    "NET_BIND_SERVICE": Danger(10, "stands in for a system service on a low port"),
    "NET_BROADCAST": Danger(5, "nothing: no kernel function asks for it"),
}

# A capability that a newer kernel has and this table does not: as bad as the worst that is not root on the host.
UNKNOWN_CAPABILITY = Danger(460, "a capability that this program does not know yet")

# Path below /dev, first match wins; numbers and names after Documentation/admin-guide/devices.txt.
DEVICES: tuple[tuple[re.Pattern[str], Danger], ...] = (
    (re.compile(r"/dev/(mem|kmem|port)"), Danger(1500, "the host's physical memory or I/O ports: the kernel itself")),
    (re.compile(r"/dev/cpu/\d+/msr"), Danger(1400, "model-specific registers: code execution in the kernel")),
    (re.compile(r"/dev/vfio/.*"), Danger(600, "hands over a whole device, with DMA bounded by the IOMMU group only")),
    (re.compile(r"/dev/(mapper/control|device-mapper)"), Danger(500, "creates mappings over any disk of the host")),
    (re.compile(r"/dev/(loop-control)"), Danger(110, "adds loop devices to the host")),
    (
        re.compile(r"/dev/loop\d+.*"),
        Danger(150, "mounts a crafted file system; shared with the host's other users of loop"),
    ),
    (re.compile(r"/dev/nbd\d+.*"), Danger(200, "attaches a disk that a remote machine controls")),
    (re.compile(r"/dev/(zram|ram|pmem)\d+.*"), Danger(180, "memory-backed disks of the host, its swap among them")),
    (re.compile(r"/dev/(sr|cdrom|fd)\d*"), Danger(120, "the medium in a removable drive")),
    (
        re.compile(r"/dev/(sd|hd|vd|xvd|nvme|mmcblk|md|dm-|bcache|dasd|sg|bsg/|mapper/|disk/|block/|ng).*"),
        Danger(1300, "a disk of the host: every file on it, below any permission"),
    ),
    (re.compile(r"/dev/bus/usb/.*"), Danger(250, "talks to any USB device, disks and keyboards among them")),
    (re.compile(r"/dev/uinput"), Danger(260, "types on the host's keyboard")),
    (re.compile(r"/dev/(input/.*|hidraw\d+)"), Danger(190, "reads the host's keyboards and mice")),
    (re.compile(r"/dev/(console|tty\d+|vcs.*|fb\d+)"), Danger(170, "reads and writes the host's consoles")),
    (re.compile(r"/dev/tty[A-Z].*"), Danger(70, "what hangs on the serial line, consoles and modems among it")),
    (re.compile(r"/dev/kmsg"), Danger(140, "reads and writes the host's kernel log")),
    (re.compile(r"/dev/(i2c-|spidev|gpiochip|mei|ipmi|tpm|mtd).*"), Danger(350, "firmware and sensors of the board")),
    (re.compile(r"/dev/watchdog\d*"), Danger(130, "reboots the host")),
    (re.compile(r"/dev/(kvm|vhost-.*|vsock)"), Danger(80, "a large kernel interface, made for use by ordinary users")),
    (re.compile(r"/dev/(dri/.*|nvidia.*|kfd)"), Danger(90, "a graphics driver, a large kernel interface")),
    (re.compile(r"/dev/(snd/.*|video\d+|media\d+)"), Danger(60, "microphone, loudspeaker and camera")),
    (re.compile(r"/dev/(btrfs-control|autofs)"), Danger(60, "scans and controls file systems of the host")),
    (re.compile(r"/dev/(rtc\d*|hpet|ptp\d+|pps\d+)"), Danger(45, "the host's clocks")),
    (re.compile(r"/dev/net/tun"), Danger(30, "makes interfaces inside its own network namespace")),
    (re.compile(r"/dev/fuse"), Danger(20, "file systems served by a program, made for use by ordinary users")),
    (re.compile(r"/dev/(null|zero|full|u?random|hwrng|tty|ptmx|pts/.*)"), Danger(5, "harmless by design")),
)
UNKNOWN_DEVICE = Danger(400, "a device that this program does not know: its driver decides")

# Kind and major, with the path that stands for the pool in the table above.
DEVICE_CLASSES: dict[tuple[str, int], str] = {
    ("c", 1): "/dev/mem",
    ("c", 4): "/dev/tty1",
    ("c", 5): "/dev/console",
    ("c", 7): "/dev/vcs",
    ("c", 13): "/dev/input/event0",
    ("c", 21): "/dev/sg0",
    ("c", 29): "/dev/fb0",
    ("c", 81): "/dev/video0",
    ("c", 116): "/dev/snd/timer",
    ("c", 136): "/dev/pts/0",
    ("c", 166): "/dev/ttyACM0",
    ("c", 188): "/dev/ttyUSB0",
    ("c", 189): "/dev/bus/usb/001/001",
    ("c", 195): "/dev/nvidia0",
    ("c", 202): "/dev/cpu/0/msr",
    ("c", 226): "/dev/dri/card0",
    ("b", 1): "/dev/ram0",
    ("b", 2): "/dev/fd0",
    ("b", 7): "/dev/loop0",
    ("b", 8): "/dev/sda",
    ("b", 9): "/dev/md0",
    ("b", 11): "/dev/sr0",
    ("b", 43): "/dev/nbd0",
    ("b", 179): "/dev/mmcblk0",
    ("b", 202): "/dev/xvda",
    ("b", 252): "/dev/zram0",
    ("b", 253): "/dev/dm-0",
    ("b", 254): "/dev/vda",
    ("b", 259): "/dev/nvme0n1",
}
# The misc major (10) is told apart by its minor (include/linux/miscdevice.h).
MISC_MINORS: dict[int, str] = {
    130: "/dev/watchdog",
    135: "/dev/rtc",
    200: "/dev/net/tun",
    223: "/dev/uinput",
    229: "/dev/fuse",
    232: "/dev/kvm",
    234: "/dev/btrfs-control",
    236: "/dev/mapper/control",
    237: "/dev/loop-control",
    238: "/dev/vhost-net",
}

SECURITY_OPTIONS: dict[str, Danger] = {
    "seccomp=unconfined": Danger(700, "every system call of the kernel becomes reachable"),
    "systempaths=unconfined": Danger(600, "the host's /proc and /sys become writable: sysrq, core patterns"),
    "apparmor=unconfined": Danger(500, "the profile that denies mounts and writes to /proc is off"),
    "label=disable": Danger(500, "SELinux no longer keeps containers apart from each other and the host"),
    "writable-cgroups=true": Danger(200, "changes its own resource limits"),
}
UNKNOWN_SECURITY_OPTION = Danger(500, "switches a protection off")

# Calls that default filters deny, where opening one more is worse than `ORDINARY_CALL`.
SYSCALLS: dict[str, Danger] = {
    "keyctl": Danger(60, "kernel keyrings are not namespaced: keys of the same uid elsewhere are in reach"),
    "add_key": Danger(50, "kernel keyrings are not namespaced"),
    "request_key": Danger(50, "kernel keyrings are not namespaced, and it starts a program on the host"),
    "userfaultfd": Danger(60, "stalls the kernel inside copies: a tool of kernel exploits"),
    "io_uring_setup": Danger(70, "a large kernel interface, rich in kernel bugs"),
    "bpf": Danger(80, "feeds the kernel's verifier"),
    "perf_event_open": Danger(70, "a large kernel interface that leaks timing"),
    "unshare": Danger(60, "user namespaces make more of the kernel reachable"),
    "clone": Danger(60, "user namespaces make more of the kernel reachable"),
    "clone3": Danger(60, "user namespaces make more of the kernel reachable, and a filter cannot see its arguments"),
    "setns": Danger(50, "enters other namespaces"),
    "mount": Danger(60, "file system drivers become reachable inside a user namespace"),
    "init_module": Danger(90, "loads kernel code where the capability is held"),
    "finit_module": Danger(90, "loads kernel code where the capability is held"),
    "kexec_load": Danger(90, "boots another kernel where the capability is held"),
    "kexec_file_load": Danger(90, "boots another kernel where the capability is held"),
    "open_by_handle_at": Danger(90, "opens files outside the container's root where DAC_READ_SEARCH is held"),
    "ptrace": Danger(40, "could bypass seccomp filters before Linux 4.8"),
    "process_vm_readv": Danger(40, "reads other processes' memory"),
    "process_vm_writev": Danger(50, "writes other processes' memory"),
}
ORDINARY_CALL = Danger(25, "one more system call that the engine's default filter keeps closed")

BOUND = Danger(1, "only takes away")
HOST_GROUPS = Danger(450, "limits, freezes and moves every process of the host; groups that it makes there stay")
HOST_SYSTEM = Danger(150, "changes this setting of the host's kernel or hardware")
SYSCTL = Danger(5, "one parameter of the container's own namespaces")

# A node that cannot be written only leaks: two thirds of its weight.
_READ_ONLY_SHARE = (2, 3)


def _of_path(path: str) -> Danger:
    return next((danger for pattern, danger in DEVICES if pattern.fullmatch(path)), UNKNOWN_DEVICE)


def _of_class(pool: DeviceClass) -> Danger:
    path = DEVICE_CLASSES.get((pool.kind, pool.major))
    if (pool.kind, pool.major) == ("c", 10) and pool.minor is not None:
        path = MISC_MINORS.get(pool.minor)
    if path is None and pool.paths:
        path = pool.paths[0]
    return UNKNOWN_DEVICE if path is None else _of_path(path)


def _softened(danger: Danger, access: str) -> Danger:
    if "w" in access:
        return danger
    times, of = _READ_ONLY_SHARE
    return Danger(max(1, danger.weight * times // of), danger.reason)


def danger(privilege: Privilege) -> Danger:
    """The weight of `privilege` and the reason for it. Unknown names get the weight of an unknown one of their kind."""
    match privilege:
        case Capability(name):
            return CAPABILITIES.get(name, UNKNOWN_CAPABILITY)
        case Device(path, access):
            return _softened(_of_path(path), access)
        case DeviceClass(access=access):
            found = _softened(_of_class(privilege), access)
            # A pool is more than any one of its nodes.
            return Danger(found.weight + 10, found.reason)
        case Syscalls(names):
            each = [SYSCALLS.get(name, ORDINARY_CALL) for name in names] or [ORDINARY_CALL]
            worst = max(each, key=lambda entry: entry.weight)
            # Opening several calls is one decision, and never as bad as opening all of them.
            return Danger(min(600, sum(entry.weight for entry in each)), worst.reason)
        case AllowList():
            return BOUND
        case SecurityOption(option):
            return SECURITY_OPTIONS.get(option, UNKNOWN_SECURITY_OPTION)
        case Sysctl():
            return SYSCTL
        case BindMount(path):
            return HOST_GROUPS if path.startswith(CONTROL_GROUPS) else HOST_SYSTEM


def weight(privilege: Privilege) -> int:
    """How dangerous `privilege` is; larger is worse, always positive."""
    return danger(privilege).weight


def reason(privilege: Privilege) -> str:
    """What an attacker who owns the workload gains from `privilege`: one clause."""
    return danger(privilege).reason
