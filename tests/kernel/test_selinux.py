"""What SELinux denies, heard from the kernel. Skipped where it is not enforced."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from profiler.kernel import selinux
from profiler.kernel.audit import AuditLog

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not selinux.is_enforced(), reason="this kernel has no SELinux, or does not enforce it"),
]
CONTAINER = "system_u:system_r:container_t:s0:c11,c22"


def refused(tmp_path: Path) -> None:
    """A program of a container's label, which the policy lets nobody become from here, or else may not read a file."""
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    os.setxattr(file, selinux.ATTRIBUTE, b"system_u:object_r:shadow_t:s0\0")
    subprocess.run(["runcon", CONTAINER, "/bin/cat", str(file)], check=False, capture_output=True)


def test_a_denial_is_heard_once(tmp_path: Path) -> None:
    with closing(AuditLog()) as log:
        refused(tmp_path)
        heard = [one for one in log.denials() if CONTAINER in (one.scontext, one.tcontext)]
        assert heard
        assert log.source
        assert not [one for one in log.denials() if CONTAINER in (one.scontext, one.tcontext)]


def test_what_was_before_is_not_heard(tmp_path: Path) -> None:
    refused(tmp_path)
    with closing(AuditLog()) as earlier:
        earlier.denials()
        with closing(AuditLog()) as log:
            assert not [one for one in log.denials() if CONTAINER in (one.scontext, one.tcontext)]


def test_the_policy_answers_for_ourselves() -> None:
    assert selinux.may("capability", "chown")
    assert selinux.may("no such class", "chown")
