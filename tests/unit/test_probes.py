"""Probes say what they found; without root many of them fail, which they may, but never by raising."""

from __future__ import annotations

import os
import signal
import time

import pytest

from profiler.errors import HostError
from profiler.witness import probes
from profiler.witness.probes import Probe, cgroup_version, probe_host

NAMES = {
    "pid namespace",
    "user notification",
    "ptrace",
    "tracefs",
    "fanotify",
    "overlayfs",
    "bounding set",
    "cgroup",
    "security modules",
}


def test_every_probe_answers_and_a_failed_one_says_how_to_mend_it():
    began = time.monotonic()
    found = probe_host()
    assert time.monotonic() - began < 20
    assert {probe.name for probe in found} >= NAMES
    assert len({probe.name for probe in found}) == len(found)
    for probe in found:
        assert probe.detail or probe.ok
        assert probe.ok or probe.mend, probe


def test_a_child_that_dies_is_a_failed_probe():
    def work():
        os.kill(os.getpid(), signal.SIGKILL)
        return ()

    (probe,) = probes._in_own_mounts("x", lambda: probes._isolated("x", work))
    assert (probe.name, probe.ok) == ("x", False)
    assert probe.mend


def test_what_a_child_raises_is_a_failed_probe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probes.namespaces, "unshare", lambda flags: None)
    monkeypatch.setattr(probes.namespaces, "mount", lambda *args: None)

    def fails():
        raise HostError("it is broken", "mend it")

    def refused():
        raise PermissionError(1, "not permitted")

    assert probes._in_own_mounts("x", fails) == (Probe("x", False, "it is broken", "mend it"),)
    (probe,) = probes._in_own_mounts("x", refused)
    assert (probe.ok, probe.detail) == (False, "not permitted")


def test_the_cgroup_version_is_one_that_there_is():
    assert cgroup_version() in {0, 1, 2}
