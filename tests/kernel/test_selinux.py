"""What SELinux denies, heard from the kernel. Skipped where it is not enforced."""

from __future__ import annotations

import subprocess
from contextlib import closing

import pytest

from profiler.kernel import audit, selinux
from profiler.kernel.audit import AuditLog
from profiler.model import LabelDenial

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not selinux.is_enforced(), reason="this kernel has no SELinux, or does not enforce it"),
]
CONTAINER = "system_u:system_r:container_t:s0:c11,c22"


def refused() -> None:
    """Have the policy deny something: a program of the host's is no way into a container's label."""
    done = subprocess.run(["runcon", CONTAINER, "/bin/cat", "/dev/null"], check=False, capture_output=True)
    assert done.returncode != 0


def ours(log: AuditLog) -> list[LabelDenial]:
    return [one for one in log.denials() if CONTAINER in (one.scontext, one.tcontext)]


@pytest.fixture(params=["the kernel's audit", "the kernel's log"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "the kernel's log":
        monkeypatch.setattr(audit, "may", lambda *asked: False)
    elif not selinux.may("capability2", "audit_read"):
        pytest.skip("the policy lets nobody read audit's group from here")
    return str(request.param)


def test_a_denial_is_heard_once(source: str) -> None:
    with closing(AuditLog()) as log:
        refused()
        assert ours(log)
        assert log.source == source
        assert not ours(log)


def test_what_was_before_is_not_heard(source: str) -> None:
    with closing(AuditLog()) as earlier:
        refused()
        assert ours(earlier)
        with closing(AuditLog()) as log:
            assert not ours(log)


def test_the_policy_answers_for_ourselves() -> None:
    assert selinux.may("capability", "chown")
    assert selinux.may("no such class", "chown")
