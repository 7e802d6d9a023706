"""Labels of privileges, as manifest, table and command line write them, turned back into privileges."""

from __future__ import annotations

import re

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

_CAPABILITY = re.compile(r"[A-Z][A-Z0-9_]*")
_DEVICE = re.compile(r"(/.*):([rwm]+)", re.DOTALL)
_CLASS = re.compile(r"([bc]) (\d+):(\d+|\*) ([rwm]+)")
_SYSCALLS = "seccomp:"
_VOLUME = "volume:"
_SYSCTL = re.compile(r"sysctl:([^=]+)=(.*)", re.DOTALL)


def privilege_of(label: str) -> Privilege:
    """The privilege whose `label` this is. Whatever has no other shape is a security option."""
    if _CAPABILITY.fullmatch(label):
        return Capability(label)
    if found := _CLASS.fullmatch(label):
        return device_class_of(label)
    if found := _DEVICE.fullmatch(label):
        return Device(found[1], found[2])
    if label == AllowList(()).label:
        return AllowList(())
    if label.startswith(_SYSCALLS):
        return Syscalls(tuple(label.removeprefix(_SYSCALLS).split(",")))
    if label.startswith(_VOLUME):
        return BindMount(label.removeprefix(_VOLUME))
    if found := _SYSCTL.fullmatch(label):
        return Sysctl(found[1], found[2])
    return SecurityOption(label)


def device_class_of(rule: str) -> DeviceClass:
    """The pool that a device cgroup rule (`b 7:* rwm`) names, without its paths. Raises ValueError for another text."""
    found = _CLASS.fullmatch(rule)
    if found is None:
        raise ValueError(f"not a device cgroup rule: {rule!r}")
    return DeviceClass(found[1], int(found[2]), None if found[3] == "*" else int(found[3]), found[4])


def same_privilege(label: str, words: str) -> bool:
    """Whether a user who writes `words` may mean `label`: without case and `CAP_` for capabilities, a device by its
    path alone, a security option by its name alone, system calls by one of their names."""
    if words == label or words.upper().removeprefix("CAP_") == label:
        return True
    match privilege_of(label):
        case Device(path):
            return words == path
        case DeviceClass() as pool:
            return words == label.rpartition(" ")[0] or words in pool.paths
        case Syscalls(names):
            return words == "seccomp" or words in names
        case SecurityOption(option):
            return words == option.partition("=")[0]
        case Sysctl(key):
            return words == key
        case BindMount(path):
            return words == path
        case _:
            return False
