"""Renders netlink messages: which message a socket sends, and to what. Constants and structures of linux/netlink.h.

The protocol of a socket is not in the call: a duplicate of the socket is asked for it (pidfd_getfd(2), socket(7)).
"""

from __future__ import annotations

import os
import socket
from typing import Final

from profiler.errors import ProfilerError
from profiler.kernel import namespaces
from profiler.tracer.decode import constants
from profiler.tracer.decode.values import Args, Tracee, join_flags, pointer, quoted, signed

ROUTE, SOCK_DIAG, XFRM, AUDIT, NETFILTER, GENERIC = 0, 4, 6, 9, 12, 16
_HEADER: Final = 16  # sizeof(struct nlmsghdr)
_SHOWN: Final = 1024  # bytes of a message that are looked at
_IOVECS: Final = 4  # parts of a sendmsg that are looked at


def _numbered(names: str, first: int = 0) -> dict[int, str]:
    return dict(enumerate(names.split(), first))


# linux/rtnetlink.h: kinds in fours, NEW DEL GET SET
_ROUTE_KINDS: Final = {
    16: "LINK", 20: "ADDR", 24: "ROUTE", 28: "NEIGH", 32: "RULE", 36: "QDISC", 40: "TCLASS", 44: "TFILTER",
    48: "ACTION", 52: "PREFIX", 56: "MULTICAST", 60: "ANYCAST", 64: "NEIGHTBL", 72: "ADDRLABEL", 76: "DCB",
    80: "NETCONF", 84: "MDB", 88: "NSID", 92: "STATS", 96: "CACHEREPORT", 100: "CHAIN", 104: "NEXTHOP",
    108: "LINKPROP", 112: "VLAN", 116: "NEXTHOPBUCKET", 120: "TUNNEL",
}  # fmt: skip
_ACTIONS: Final = ("NEW", "DEL", "GET", "SET")
_DIAG: Final = {18: "TCPDIAG_GETSOCK", 20: "SOCK_DIAG_BY_FAMILY", 21: "SOCK_DESTROY"}
_AUDIT: Final = {
    1000: "AUDIT_GET", 1001: "AUDIT_SET", 1002: "AUDIT_LIST", 1003: "AUDIT_ADD", 1004: "AUDIT_DEL", 1005: "AUDIT_USER",
    1006: "AUDIT_LOGIN", 1008: "AUDIT_WATCH_REM", 1009: "AUDIT_WATCH_LIST", 1010: "AUDIT_SIGNAL_INFO",
    1011: "AUDIT_ADD_RULE", 1012: "AUDIT_DEL_RULE", 1013: "AUDIT_LIST_RULES", 1014: "AUDIT_TRIM",
    1015: "AUDIT_MAKE_EQUIV", 1016: "AUDIT_TTY_GET", 1017: "AUDIT_TTY_SET", 1018: "AUDIT_SET_FEATURE",
    1019: "AUDIT_GET_FEATURE",
}  # fmt: skip
_XFRM: Final = _numbered(
    "NEWSA DELSA GETSA NEWPOLICY DELPOLICY GETPOLICY ALLOCSPI ACQUIRE EXPIRE UPDPOLICY UPDSA POLEXPIRE FLUSHSA "
    "FLUSHPOLICY NEWAE GETAE REPORT MIGRATE NEWSADINFO GETSADINFO NEWSPDINFO GETSPDINFO MAPPING SETDEFAULT "
    "GETDEFAULT",
    first=16,
)
# linux/netfilter/nfnetlink.h: the subsystem is the type's upper byte
_SUBSYSTEMS: Final = {
    1: "CTNETLINK", 2: "CTNETLINK_EXP", 3: "QUEUE", 4: "ULOG", 5: "OSF", 6: "IPSET", 7: "ACCT", 8: "CTNETLINK_TIMEOUT",
    9: "CTHELPER", 10: "NFTABLES", 11: "NFT_COMPAT", 12: "HOOK",
}  # fmt: skip
_NFTABLES: Final = _numbered(
    "NEWTABLE GETTABLE DELTABLE NEWCHAIN GETCHAIN DELCHAIN NEWRULE GETRULE DELRULE NEWSET GETSET DELSET NEWSETELEM "
    "GETSETELEM DELSETELEM NEWGEN GETGEN TRACE NEWOBJ GETOBJ DELOBJ GETOBJ_RESET NEWFLOWTABLE GETFLOWTABLE "
    "DELFLOWTABLE GETRULE_RESET DESTROYTABLE DESTROYCHAIN DESTROYRULE DESTROYSET DESTROYSETELEM DESTROYOBJ "
    "DESTROYFLOWTABLE GETSETELEM_RESET"
)
_IPSET: Final = _numbered(
    "NONE PROTOCOL CREATE DESTROY FLUSH RENAME SWAP LIST SAVE ADD DEL TEST HEADER TYPE GET_BYNAME GET_BYINDEX"
)
_CONNTRACK: Final = _numbered("NEW GET DELETE GET_CTRZERO GET_STATS_CPU GET_STATS GET_DYING GET_UNCONFIRMED")
_NETFILTER: Final = {
    6: ("IPSET_CMD_", _IPSET),
    10: ("NFT_MSG_", _NFTABLES),
    1: ("IPCTNL_MSG_CT_", _CONNTRACK),
}
_BATCH: Final = {16: "NFNL_MSG_BATCH_BEGIN", 17: "NFNL_MSG_BATCH_END"}
_IFLA_IFNAME: Final = 3  # linux/if_link.h
_LINK_ATTRIBUTES: Final = _HEADER + 16  # after struct ifinfomsg


def protocol(tracee: Tracee, fd: int) -> int | None:
    """The netlink protocol of the tracee's socket `fd`; None for any other descriptor."""
    if not (tracee.link(f"fd/{fd}") or "").startswith("socket:"):
        return None
    try:
        pidfd = namespaces.pidfd_open(_leader(tracee.pid))
        try:
            with socket.socket(fileno=namespaces.pidfd_getfd(pidfd, fd)) as ours:
                return ours.proto if ours.family == socket.AF_NETLINK else None
        finally:
            os.close(pidfd)
    except (OSError, ProfilerError):  # gone, or the workload's process may not be looked into
        return None


def _leader(pid: int) -> int:
    """The process of the thread `pid`: a pidfd stands for a process. Raises OSError when it is gone."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        return next((int(line.split()[1]) for line in file if line.startswith("Tgid:")), pid)


def socket_fd(value: int, tracee: Tracee, _: Args) -> str:
    """A socket's descriptor, with the protocol of a netlink socket."""
    number = signed(value)
    kind = protocol(tracee, number)
    return str(number) if kind is None else f"{number}<{constants.NETLINK_PROTOCOLS.get(kind, f'netlink {kind}')}>"


def buffer(value: int, tracee: Tracee, args: Args) -> str:
    """The buffer of sendto(2), whose length is in argument 2: a netlink message where the socket is one for those."""
    kind = protocol(tracee, signed(args[0]))
    if kind is None:
        return pointer(value, tracee, args)
    return messages(tracee.bytes(value, min(args[2], _SHOWN)), kind) or pointer(value, tracee, args)


def message_header(value: int, tracee: Tracee, args: Args) -> str:
    """The `struct msghdr` of sendmsg(2), the same way."""
    kind = protocol(tracee, signed(args[0]))
    vector, count = tracee.number(value + 16, 8), tracee.number(value + 24, 8)
    if kind is None or vector is None or count is None:
        return pointer(value, tracee, args)
    content = b""
    for at in range(min(count, _IOVECS)):
        base, length = tracee.number(vector + 16 * at, 8), tracee.number(vector + 16 * at + 8, 8)
        if base is None or length is None or len(content) >= _SHOWN:
            break
        content += tracee.bytes(base, min(length, _SHOWN - len(content)))
    return messages(content, kind) or pointer(value, tracee, args)


def messages(content: bytes, kind: int) -> str:
    """The messages in `content` for the protocol `kind`, each with its type and flags; empty where there is none."""
    shown: list[str] = []
    at = 0
    while at + _HEADER <= len(content) and len(shown) < 3:
        length = int.from_bytes(content[at : at + 4], "little")
        number = int.from_bytes(content[at + 4 : at + 6], "little")
        if length < _HEADER:
            break
        name = _type(number, kind)
        subject = _interface(content[at : at + length]) if kind == ROUTE and number in (16, 17, 19) else ""
        if name not in _BATCH.values():
            shown.append(f"{name} {subject}".rstrip())
        at += length + 3 & ~3
    more = at + _HEADER <= len(content)
    return "{" + ", ".join(shown) + (", …" if more else "") + "}" if shown else ""


def _type(number: int, kind: int) -> str:
    if kind == ROUTE and number >= 16 and number - number % 4 in _ROUTE_KINDS:
        return f"RTM_{_ACTIONS[number % 4]}{_ROUTE_KINDS[number - number % 4]}"
    if kind == SOCK_DIAG:
        return _DIAG.get(number, str(number))
    if kind == AUDIT:
        user = 1100 <= number < 1200 or 2100 <= number < 3000  # linux/audit.h: AUDIT_FIRST_USER_MSG…
        return _AUDIT.get(number) or (f"AUDIT_USER_MSG {number}" if user else str(number))
    if kind == XFRM and number in _XFRM:
        return f"XFRM_MSG_{_XFRM[number]}"
    if kind == NETFILTER:
        if number in _BATCH:
            return _BATCH[number]
        subsystem, command = number >> 8, number & 0xFF
        prefix, names = _NETFILTER.get(subsystem, ("", {}))
        return prefix + names[command] if command in names else f"{_SUBSYSTEMS.get(subsystem, subsystem)} {command}"
    if kind == GENERIC and number == 16:
        return "CTRL_CMD"
    return f"type {number}"


def _interface(message: bytes) -> str:
    """The interface of a link message: its name, or its index."""
    at = _LINK_ATTRIBUTES
    while at + 4 <= len(message):
        length = int.from_bytes(message[at : at + 2], "little")
        if length < 4:
            break
        if int.from_bytes(message[at + 2 : at + 4], "little") == _IFLA_IFNAME:
            return quoted(message[at + 4 : at + length].rstrip(b"\0").decode("utf-8", "replace"))
        at += length + 3 & ~3
    index = int.from_bytes(message[_HEADER + 4 : _HEADER + 8], "little")
    return f"ifindex={index}" if index else ""


def flags_of(value: int, _: Tracee, __: Args) -> str:
    """The flags of send(2) and its relatives."""
    return join_flags(value & 0xFFFFFFFF, constants.MESSAGE_FLAGS)
