"""Calls by which a process gives up privilege, the capability that they take, and what is left where it lacks. Data.

A workload that goes on where such a call is refused does its work with more privilege than it meant to have. Not here:
filters and Landlock, for which a process without SYS_ADMIN sets no_new_privs; sets of capabilities, which programs
compute from those that they hold; and bounds of resources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GivingUp:
    """One call. `kept` is what the process then keeps, in words after its name. `of_root`: the call gives up something
    only where root makes it and every id among the arguments is another's (-1: it stays as it is). `option` is the
    first argument that the call must have, where only one of several counts."""

    capability: str
    kept: str
    of_root: bool = False
    option: str = ""


_USER = GivingUp("SETUID", "stays root", of_root=True)
_GROUP = GivingUp("SETGID", "stays in the groups that root started it with", of_root=True)
_NAMESPACES = GivingUp(
    "SYS_ADMIN", "stays in the namespaces that it started in, unless it takes a user namespace instead"
)

GIVING_UP: Mapping[str, GivingUp] = {
    "setuid": _USER,
    "setreuid": _USER,
    "setresuid": _USER,
    "setgid": _GROUP,
    "setregid": _GROUP,
    "setresgid": _GROUP,
    "setgroups": GivingUp("SETGID", _GROUP.kept),
    "chroot": GivingUp("SYS_CHROOT", "goes on with all of the file system in sight"),
    "prctl": GivingUp("SETPCAP", "keeps its bounding set of capabilities", option="PR_CAPBSET_DROP"),
    "unshare": _NAMESPACES,
    "clone": _NAMESPACES,
    "setns": _NAMESPACES,
}
