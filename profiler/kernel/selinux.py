"""SELinux's own file system: whether the policy is enforced, and what it answers. Labels of files.

Source: security/selinux/selinuxfs.c.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

SELINUXFS: Final = Path("/sys/fs/selinux")
ATTRIBUTE: Final = "security.selinux"
_AS_SELF: Final = Path("/proc/thread-self/attr/current")


def is_enforced() -> bool | None:
    """Whether what the policy denies is refused, or only noted; None where there is no SELinux."""
    try:
        return (SELINUXFS / "enforce").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return None


def label_of(path: str) -> str:
    """The context of a file; empty where it has none, or is gone."""
    try:
        return os.fsdecode(os.getxattr(path, ATTRIBUTE).rstrip(b"\0"))
    except OSError:
        return ""


def may(tclass: str, permission: str) -> bool:
    """Whether the policy allows the calling thread this permission on itself (a capability): nothing is tried, so
    nothing is logged. True where there is no SELinux, or no answer."""
    try:
        own = _AS_SELF.read_bytes().rstrip(b"\0\n ")
        number = (SELINUXFS / "class" / tclass / "index").read_bytes().strip()
        bit = int((SELINUXFS / "class" / tclass / "perms" / permission).read_bytes()) - 1
        access = os.open(SELINUXFS / "access", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(access, b" ".join((own, own, number)))
            allowed = int(os.read(access, 128).split()[0], 16)
        finally:
            os.close(access)
    except (OSError, ValueError):
        return True
    return bool(allowed >> bit & 1)
