"""Brings up the loopback interface of this network namespace, without netlink. Sources: netdevice(7), linux/if.h."""

from __future__ import annotations

import fcntl
import socket
import struct

# linux/sockios.h
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1  # linux/if.h

_IFREQ = struct.Struct("16sH22x")  # struct ifreq with ifr_flags


def raise_loopback() -> None:
    """Set IFF_UP on `lo` of the calling thread's network namespace; the kernel then adds 127.0.0.1 and ::1.

    Raises OSError EPERM without NET_ADMIN there.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name, flags = _IFREQ.unpack(fcntl.ioctl(control, SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(control, SIOCSIFFLAGS, _IFREQ.pack(name, flags | IFF_UP))
