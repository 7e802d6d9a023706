"""The kernel parameters of another process's namespaces, read after its end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from pace import SLOWER

from profiler.model import Observation, Process
from profiler.tracer.sysctls import Sysctls

pytestmark = pytest.mark.kernel
TTL = Path("/proc/sys/net/ipv4/ip_default_ttl")
MSGMAX = Path("/proc/sys/kernel/msgmax")


def opened(path: Path, result: int = 3) -> Observation:
    return Observation("openat", (), result, str(path), Process(1, "/bin/sh"), (), 1)


def test_values_are_those_of_the_workloads_namespaces_also_after_its_end() -> None:
    before = TTL.read_text(), MSGMAX.read_text()
    script = f"echo 77 > {TTL}; echo 9001 > {MSGMAX}; echo ready; cat"
    with subprocess.Popen(
        ["unshare", "--net", "--ipc", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with Sysctls(child.pid) as sysctls:
            child.communicate(timeout=10 * SLOWER)
            found = sysctls.values([opened(TTL), opened(MSGMAX), opened(Path("/proc/sys/kernel/core_pattern"))])
            assert sysctls.values([opened(TTL, result=-30)]) == {}
    assert found == {"net.ipv4.ip_default_ttl": "77", "kernel.msgmax": "9001"}
    assert (TTL.read_text(), MSGMAX.read_text()) == before


def test_the_hosts_own_parameters_are_not_told() -> None:
    with Sysctls(os.getpid()) as sysctls:
        assert sysctls.values([opened(TTL), opened(MSGMAX)]) == {}
