"""Images for tests that need a Docker engine, built once and shared (see tests/images.py)."""

from __future__ import annotations

import images
import pytest


@pytest.fixture(scope="session")
def busybox_image() -> str:
    """The tag of a small image with busybox: sh, mount, ip, ping, mknod, …"""
    return images.busybox()


@pytest.fixture(scope="session")
def tools_image() -> str:
    """The tag of a Debian or Ubuntu userland with util-linux, iproute2, tcpdump, strace, nginx, sshd, sudo, …"""
    return images.tools()


@pytest.fixture(scope="session")
def builders_image() -> str:
    """The tag of a userland with gcc, make, buildah and dockerd."""
    return images.builders()
