"""What SELinux denied while somebody listened: the AVC records of the kernel's audit.

They are read from audit's multicast group where this host's policy allows that (Debian's does not, to anybody), or else
from the kernel's log, which has them as long as no auditd runs. Who runs an auditd loses nothing by it. Sources:
linux/audit.h, kernel/audit.c, security/selinux/avc.c (avc_audit_pre_callback, avc_audit_post_callback),
security/lsm_audit.c (dump_common_audit_data). Says nothing of who is meant.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from profiler.kernel.selinux import may
from profiler.model import LabelDenial, Process

NETLINK_AUDIT: Final = 9  # linux/netlink.h
NLM_F_REQUEST: Final = 1
NLMSG_ERROR: Final = 2
SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h
AUDIT_NLGRP_READLOG: Final = 1
AUDIT_GET: Final = 1000
AUDIT_AVC: Final = 1400
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_STATUS: Final = struct.Struct("=8I")  # the beginning of struct audit_status; its last word here is the backlog
_AUDITD: Final = 3  # which of these is the pid of an auditd
_BUFFER: Final = 8 << 20  # bytes: what comes while nobody reads
_KMSG: Final = Path("/dev/kmsg")
_KERNELS: Final = 8  # the first priority of another facility than the kernel's: what programs write has one
_SETTLED: Final = 1.0  # seconds at most to wait for what the kernel's thread has not sent yet
_AVC = re.compile(r"avc:\s+denied\s+\{ ([^}]*)\} for ")
_FIELD = re.compile(r'(\w+)=("[^"]*"|\S+)')


class AuditLog:
    """Listens from its making until `close`. Raises OSError where there is nothing that may be read."""

    def __init__(self) -> None:
        """See the class."""
        self._kmsg: int | None = None
        self._auditd = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_AUDIT)
        try:
            self._socket.setblocking(False)
            with suppress(OSError):  # CAP_NET_ADMIN
                self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
            if not self._joined():
                self._kmsg = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.lseek(self._kmsg, 0, os.SEEK_END)
        except BaseException:
            self.close()
            raise

    def denials(self) -> tuple[LabelDenial, ...]:
        """Every enforced denial since the last call, once what happened before this one has come in.

        Records come from a thread of the kernel's. How many it has still to send is asked for until there are none.
        """
        found: list[LabelDenial] = []
        until = time.monotonic() + _SETTLED
        settled = False
        while not settled and time.monotonic() < until:
            answered = False
            try:
                self._socket.sendto(_HEADER.pack(_HEADER.size, AUDIT_GET, NLM_F_REQUEST, 1, 0), (0, 0))
            except OSError:
                settled = True
            while not answered and select.select([self._socket], [], [], self._patience(until, settled))[0]:
                for kind, payload in self._messages():
                    if kind == AUDIT_AVC:
                        found += parsed(payload.decode("utf-8", "replace"))
                    elif kind == AUDIT_GET:
                        status = _STATUS.unpack_from(payload)
                        answered, settled, self._auditd = True, status[-1] == 0, status[_AUDITD]
                    elif kind == NLMSG_ERROR:  # without CAP_AUDIT_CONTROL: what has come so far is all that is known
                        answered = settled = True
        found += (denial for text in self._logged() for denial in parsed(text))
        return tuple(found)

    def _joined(self) -> bool:
        """Whether this listens to audit's group, which takes CAP_AUDIT_READ.

        A try that SELinux refuses is one more denial in the host's log, so it is asked before.
        """
        if not may("capability2", "audit_read"):
            return False
        try:
            self._socket.bind((0, 1 << (AUDIT_NLGRP_READLOG - 1)))
        except PermissionError:
            return False
        return True

    @staticmethod
    def _patience(until: float, settled: bool) -> float:
        return 0.0 if settled else max(0.0, until - time.monotonic())

    @property
    def source(self) -> str:
        """Where the denials come from, in words; empty where nothing can come. Known after `denials`."""
        if self._kmsg is None:
            return "the kernel's audit"
        return "" if self._auditd else "the kernel's log"

    def _logged(self) -> Iterator[str]:
        """What the kernel has logged since; nothing where the group is read."""
        while self._kmsg is not None:
            try:
                record = os.read(self._kmsg, 1 << 13).decode("utf-8", "replace")
            except BlockingIOError:
                return
            except BrokenPipeError:  # some were overwritten
                continue
            head, _, text = record.partition(";")
            if int(head.partition(",")[0]) < _KERNELS:
                yield text.partition("\n")[0]

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        """The type and payload of each message of one datagram.

        The kernel counts a record's length without its header (kauditd_send_multicast_skb), so there is one each.
        """
        try:
            content = self._socket.recv(1 << 16)
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.EAGAIN):
                raise
            return  # some were lost, or it was taken for another
        if len(content) >= _HEADER.size:
            yield _HEADER.unpack_from(content)[1], content[_HEADER.size :]

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._socket.close()
        if self._kmsg is not None:
            os.close(self._kmsg)
            self._kmsg = None


def parsed(text: str) -> Iterator[LabelDenial]:
    """The denial that a record's text tells, if it is one and was enforced."""
    head = _AVC.search(text)
    if head is None:
        return
    fields = dict(_FIELD.findall(text, head.end()))
    if fields.get("permissive") == "1":
        return
    path = fields.get("path") or fields.get("name")
    yield LabelDenial(
        permissions=tuple(head[1].split()),
        tclass=fields.get("tclass", ""),
        scontext=fields.get("scontext", ""),
        tcontext=fields.get("tcontext", ""),
        path=None if path is None else _untrusted(path),
        process=Process(int(fields.get("pid", -1)), _untrusted(fields.get("comm", ""))),
    )


def _untrusted(value: str) -> str:
    """A string as audit_log_untrustedstring writes it: in quotes, or in hexadecimal where it holds odd characters."""
    if value.startswith('"'):
        return value[1:-1]
    try:
        return os.fsdecode(bytes.fromhex(value))
    except ValueError:
        return value
