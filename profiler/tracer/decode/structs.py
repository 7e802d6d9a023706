"""Renders what a pointer points at: addresses of sockets, rlimits, capability sets, `struct open_how` and the like."""

from __future__ import annotations

import ipaddress
import os
import struct

from profiler.kernel.capabilities import CAPABILITIES, names
from profiler.tracer.decode import constants, ioctls
from profiler.tracer.decode.values import (
    Args,
    Tracee,
    join_flags,
    number,
    octal,
    pointer,
    quoted,
    signed,
    text,
)

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_VSOCK = 1, 2, 10, 16, 17, 40  # linux/socket.h
_SOCKADDR_MAX = 128  # sizeof(struct sockaddr_storage)
_IFNAMSIZ = 16  # linux/if.h
_GROUPS_SHOWN = 16
_WORDS_SHOWN = 6
_WORD_SHOWN = 32
_RLIM_INFINITY = (1 << 64) - 1
_LINUX_CAPABILITY_VERSION_1 = 0x19980330


def open_flags(value: int, _: Tracee, __: Args) -> str:
    """The flags of open(2); the access mode is a number, not a bit."""
    mode = constants.ACCESS_MODES[value & 3]
    rest = value & 0xFFFFFFFC
    return f"{mode}|{join_flags(rest, constants.OPEN_FLAGS)}" if rest else mode


def mount_flags(value: int, _: Tracee, __: Args) -> str:
    """The flags of mount(2), without the magic number of old programs."""
    value &= 0xFFFFFFFF
    if value & 0xFFFF0000 == constants.MS_MGC:
        value &= 0xFFFF
    return join_flags(value, constants.MOUNT_FLAGS)


def mount_data(value: int, tracee: Tracee, args: Args) -> str:
    """The options of mount(2): a string, except for a few file systems that take a structure."""
    content = tracee.string(value, 256) if value else None
    return pointer(value, tracee, args) if content is None or not content.isprintable() else text(value, tracee, args)


def clone_flags(value: int, _: Tracee, __: Args) -> str:
    """The flags of clone(2), whose lowest byte is the signal that the parent gets."""
    shown = join_flags(value & 0xFFFFFF00, constants.CLONE_FLAGS)
    return f"{shown}|{value & 0xFF}" if value & 0xFF else shown


def clone3_flags(value: int, tracee: Tracee, args: Args) -> str:
    """The flags in `struct clone_args`."""
    shown = tracee.number(value, 8)
    return pointer(value, tracee, args) if shown is None else "{" + join_flags(shown, constants.CLONE_FLAGS) + "}"


def uring_parameters(value: int, tracee: Tracee, args: Args) -> str:
    """The flags in `struct io_uring_params`, its third word."""
    shown = tracee.number(value + 8, 4)
    return pointer(value, tracee, args) if shown is None else "{" + join_flags(shown, constants.URING_FLAGS) + "}"


def socket_type(value: int, _: Tracee, __: Args) -> str:
    """The type of socket(2) with its flags."""
    kind = constants.SOCKET_TYPES.get(value & 0xF, str(value & 0xF))
    rest = value & 0xFFFFFFF0
    return f"{kind}|{join_flags(rest, constants.SOCKET_TYPE_FLAGS)}" if rest else kind


def socket_protocol(value: int, tracee: Tracee, args: Args) -> str:
    """The protocol of socket(2), which means something else in each family."""
    tables = {
        AF_INET: constants.IP_PROTOCOLS,
        AF_INET6: constants.IP_PROTOCOLS,
        AF_NETLINK: constants.NETLINK_PROTOCOLS,
    }
    family = args[0] & 0xFFFFFFFF
    if family == AF_PACKET:  # an Ethernet type in network order
        return f"htons({int.from_bytes((value & 0xFFFF).to_bytes(2, 'little'), 'big'):#06x})"
    return tables.get(family, {}).get(value & 0xFFFFFFFF) or number(value, tracee, args)


def set_option(value: int, tracee: Tracee, args: Args) -> str:
    """The option of setsockopt(2) in the level of argument 1."""
    return constants.SOCKET_OPTIONS.get(args[1] & 0xFFFFFFFF, {}).get(value & 0xFFFFFFFF) or number(value, tracee, args)


def get_option(value: int, tracee: Tracee, args: Args) -> str:
    """The option of getsockopt(2) in the level of argument 1."""
    return constants.READ_SOCKET_OPTIONS.get(args[1] & 0xFFFFFFFF, {}).get(value & 0xFFFFFFFF) or number(
        value, tracee, args
    )


def option_value(value: int, tracee: Tracee, args: Args) -> str:
    """What setsockopt(2) sets: an int, or a name (a network interface, an algorithm)."""
    length = args[4] & 0xFFFFFFFF
    content = tracee.bytes(value, min(length, 64))
    name = content.split(b"\0", 1)[0]
    if len(name) > 1 and name.isascii() and name.decode("ascii").isprintable():
        return quoted(name.decode("ascii"))
    return str(int.from_bytes(content, "little", signed=True)) if len(content) == 4 else pointer(value, tracee, args)


def address(value: int, tracee: Tracee, args: Args) -> str:
    """A `struct sockaddr` whose length is in argument 2."""
    content = tracee.bytes(value, min(args[2] & 0xFFFFFFFF, _SOCKADDR_MAX))
    return socket_address(content) or pointer(value, tracee, args)


def socket_address(content: bytes) -> str | None:
    """An address as people write it (`0.0.0.0:80`, `[::]:443`, `"/run/x"`); None when it is too short."""
    if len(content) < 2:
        return None
    family = int.from_bytes(content[:2], "little")
    if family == AF_UNIX:
        body = content[2:]
        if body.startswith(b"\0"):  # unix(7): an abstract name, NULs and all
            return quoted("@" + os.fsdecode(body[1:]))
        return quoted(os.fsdecode(body.split(b"\0", 1)[0])) if body else "AF_UNIX"
    if family == AF_INET and len(content) >= 8:
        return f"{ipaddress.IPv4Address(content[4:8])}:{int.from_bytes(content[2:4], 'big')}"
    if family == AF_INET6 and len(content) >= 24:
        return f"[{ipaddress.IPv6Address(content[8:24])}]:{int.from_bytes(content[2:4], 'big')}"
    if family == AF_NETLINK and len(content) >= 12:
        pid, groups = int.from_bytes(content[4:8], "little"), int.from_bytes(content[8:12], "little")
        return f"netlink pid={pid} groups={groups:#x}"
    if family == AF_PACKET and len(content) >= 8:
        return f"packet ifindex={int.from_bytes(content[4:8], 'little')}"
    if family == AF_VSOCK and len(content) >= 12:
        return f"vsock {int.from_bytes(content[8:12], 'little')}:{int.from_bytes(content[4:8], 'little')}"
    return constants.FAMILIES.get(family, f"family {family}")


def destination(value: int, tracee: Tracee, args: Args) -> str:
    """Where sendto(2) sends: a `struct sockaddr` whose length is in argument 5."""
    content = tracee.bytes(value, min(args[5] & 0xFFFFFFFF, _SOCKADDR_MAX))
    return socket_address(content) or pointer(value, tracee, args)


def arguments(value: int, tracee: Tracee, args: Args) -> str:
    """The first words of a program's argument vector."""
    words: list[str] = []
    for at in range(_WORDS_SHOWN + 1):
        address = tracee.number(value + 8 * at, 8) if value else None
        word = tracee.string(address, _WORD_SHOWN) if address else None
        if word is None:
            return "[" + ", ".join(words) + "]" if words else pointer(value, tracee, args)
        words.append(quoted(word))
    return "[" + ", ".join(words[:-1]) + ", …]"


def ioctl_command(value: int, _: Tracee, __: Args) -> str:
    """The command of ioctl(2)."""
    return ioctls.name(value)


def ioctl_argument(value: int, tracee: Tracee, args: Args) -> str:
    """The argument of ioctl(2): a network interface's name where the command takes one."""
    command = args[1] & 0xFFFFFFFF
    if command in ioctls.INTERFACE_REQUESTS or command == 0x400454CA:  # TUNSETIFF
        name = tracee.bytes(value, _IFNAMSIZ).split(b"\0", 1)[0]
        if name and name.isascii() and name.decode("ascii").isprintable():
            return quoted(name.decode("ascii"))
    return f"{value:#x}" if value else "0"


def groups(value: int, tracee: Tracee, args: Args) -> str:
    """The list of setgroups(2), whose length is in argument 0."""
    count = args[0] & 0xFFFFFFFF
    content = tracee.bytes(value, 4 * min(count, _GROUPS_SHOWN))
    shown = [str(int.from_bytes(content[at : at + 4], "little")) for at in range(0, len(content) - 3, 4)]
    if len(shown) < min(count, _GROUPS_SHOWN):
        return pointer(value, tracee, args)
    return "[" + ", ".join(shown) + (", …]" if count > _GROUPS_SHOWN else "]")


def limit(value: int, tracee: Tracee, args: Args) -> str:
    """A `struct rlimit`."""
    content = tracee.bytes(value, 16)
    if len(content) < 16:
        return pointer(value, tracee, args)
    soft, hard = (int.from_bytes(content[at : at + 8], "little") for at in (0, 8))
    return f"{{{_limit(soft)}, {_limit(hard)}}}"


def _limit(value: int) -> str:
    return "RLIM_INFINITY" if value == _RLIM_INFINITY else str(value)


def capability(value: int, tracee: Tracee, args: Args) -> str:
    """A capability's number, as prctl(2) takes it."""
    return "CAP_" + CAPABILITIES[value] if value < len(CAPABILITIES) else number(value, tracee, args)


def capability_header(value: int, tracee: Tracee, args: Args) -> str:
    """`struct __user_cap_header_struct`: whose sets they are; 0 is the caller."""
    pid = tracee.number(value + 4, 4)
    return pointer(value, tracee, args) if pid is None else f"{{pid={signed(pid)}}}"


def capability_sets(value: int, tracee: Tracee, args: Args) -> str:
    """The sets that capset(2) sets; how wide they are is said by the header in argument 0."""
    sets = _sets(value, tracee, args)
    if sets is None:
        return pointer(value, tracee, args)
    named = zip(("effective", "permitted", "inheritable"), sets, strict=True)
    return "{" + " ".join(f"{name}={_set(bits)}" for name, bits in named) + "}"


def permitted_by(tracee: Tracee, args: Args) -> int:
    """What a capset(2) with these arguments takes into the permitted or the inheritable set, as bits."""
    _, permitted, inheritable = _sets(args[1], tracee, args) or (0, 0, 0)
    return permitted | inheritable


def _sets(address: int, tracee: Tracee, args: Args) -> tuple[int, int, int] | None:
    """The effective, the permitted and the inheritable set of struct __user_cap_data_struct; None where it cannot be
    read."""
    version = tracee.number(args[0], 4)
    words = 1 if version == _LINUX_CAPABILITY_VERSION_1 else 2
    content = tracee.bytes(address, 12 * words)
    if version is None or len(content) < 12 * words:
        return None
    halves = [struct.unpack_from("<3I", content, 12 * at) for at in range(words)]
    low, high = halves[0], halves[-1] if words > 1 else (0, 0, 0)
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable


def _set(mask: int) -> str:
    held = [name for name in CAPABILITIES if name in names(mask)]
    absent = [name for name in CAPABILITIES if name not in held]
    if not held:
        return "none"
    if len(absent) < len(held):
        return "all" + "".join(f"-{name}" for name in absent)
    return ",".join(held)


def prctl_argument(value: int, tracee: Tracee, args: Args) -> str:
    """Argument 1 of prctl(2), by the option in argument 0."""
    match constants.PRCTL_OPTIONS.get(args[0] & 0xFFFFFFFF):
        case "PR_CAPBSET_DROP":
            return capability(value, tracee, args)
        case "PR_CAP_AMBIENT":
            return constants.AMBIENT_ACTIONS.get(value) or number(value, tracee, args)
        case "PR_SET_SECUREBITS":
            return join_flags(value & 0xFFFFFFFF, constants.SECUREBITS)
    return f"{value:#x}" if value > 0xFFFF else str(value)


def prctl_ambient(value: int, tracee: Tracee, args: Args) -> str:
    """Argument 2 of prctl(2): a capability for PR_CAP_AMBIENT."""
    ambient = constants.PRCTL_OPTIONS.get(args[0] & 0xFFFFFFFF) == "PR_CAP_AMBIENT"
    if ambient and constants.AMBIENT_ACTIONS.get(args[1]) != "PR_CAP_AMBIENT_CLEAR_ALL":
        return capability(value, tracee, args)
    return f"{value:#x}" if value > 0xFFFF else str(value)


def io_priority(value: int, _: Tracee, __: Args) -> str:
    """A class and a level (linux/ioprio.h, IOPRIO_PRIO_VALUE)."""
    kind = constants.IOPRIO_CLASSES.get(value >> 13 & 7, str(value >> 13 & 7))
    return f"{kind}|{value & 0x1FFF}"


def fcntl_argument(value: int, tracee: Tracee, args: Args) -> str:
    """Argument 2 of fcntl(2): flags for F_SETFL."""
    return join_flags(value & 0xFFFFFFFF, constants.OPEN_FLAGS) if args[1] & 0xFFFFFFFF == 4 else str(signed(value))


def config_value(value: int, tracee: Tracee, args: Args) -> str:
    """The value of fsconfig(2): a string or a path where the command in argument 1 says so."""
    command = constants.FSCONFIG_COMMANDS.get(args[1] & 0xFFFFFFFF, "")
    if command in ("FSCONFIG_SET_STRING", "FSCONFIG_SET_PATH", "FSCONFIG_SET_PATH_EMPTY"):
        return text(value, tracee, args)
    return pointer(value, tracee, args)


def open_how(value: int, tracee: Tracee, args: Args) -> str:
    """`struct open_how`: flags, mode, resolve."""
    parts = [tracee.number(value + at, 8) for at in (0, 8, 16)]
    if parts[0] is None or parts[1] is None or parts[2] is None:
        return pointer(value, tracee, args)
    return f"{{{open_flags(parts[0], tracee, args)}, {octal(parts[1], tracee, args)}, resolve={parts[2]:#x}}}"


def mount_attributes(value: int, tracee: Tracee, args: Args) -> str:
    """`struct mount_attr`: set, clear, propagation."""
    parts = [tracee.number(value + at, 8) for at in (0, 8, 16)]
    if parts[0] is None or parts[1] is None or parts[2] is None:
        return pointer(value, tracee, args)
    shown = [f"set={join_flags(parts[0], constants.MOUNT_ATTRIBUTES)}"]
    if parts[1]:
        shown.append(f"clear={join_flags(parts[1], constants.MOUNT_ATTRIBUTES)}")
    if parts[2]:
        shown.append(f"propagation={join_flags(parts[2], constants.MOUNT_FLAGS)}")
    return "{" + ", ".join(shown) + "}"


def quota_command(value: int, _: Tracee, __: Args) -> str:
    """The command of quotactl(2): a number shifted by 8, and the kind of quota."""
    command = value >> 8 & 0xFFFFFF
    return f"{constants.QUOTA_COMMANDS.get(command, hex(command))}|{value & 0xFF}"


def scheduling_policy(value: int, tracee: Tracee, args: Args) -> str:
    """The policy in `struct sched_attr`."""
    policy, nice, priority = (tracee.number(value + at, 4) for at in (4, 16, 20))
    if policy is None or nice is None or priority is None:
        return pointer(value, tracee, args)
    return f"{{{constants.POLICIES.get(policy, str(policy))}, nice={signed(nice)}, priority={priority}}}"


def scheduling_priority(value: int, tracee: Tracee, args: Args) -> str:
    """`struct sched_param`."""
    priority = tracee.number(value, 4)
    return pointer(value, tracee, args) if priority is None else f"[{signed(priority)}]"


def key(value: int, tracee: Tracee, args: Args) -> str:
    """Argument 1 of keyctl(2): a key's serial number, one of the caller's own keyrings, or the name of a session."""
    if constants.KEYCTL_COMMANDS.get(args[0] & 0xFFFFFFFF) == "KEYCTL_JOIN_SESSION_KEYRING":
        return text(value, tracee, args)
    return constants.KEYRINGS.get(signed(value)) or number(value, tracee, args)


def unix_path(content: bytes) -> str | None:
    """The path in a `struct sockaddr_un`; None for every other address and for abstract names."""
    if int.from_bytes(content[:2], "little") != AF_UNIX or len(content) < 3 or content[2] == 0:
        return None
    return os.fsdecode(content[2:].split(b"\0", 1)[0])
