"""What a workload that fails even with every privilege was refused."""

import dataclasses

import pytest
from sample_report import report

from profiler.model import KernelCheck, Observation, Process
from profiler.report.table import render

LIMIT = Observation(
    "prlimit64",
    ("7", "RLIMIT_NOFILE", "{100, 200}", "NULL"),
    -1,
    None,
    Process(7, "/usr/bin/prlimit"),
    (KernelCheck("SYS_RESOURCE", False, "do_prlimit"),),
)
STOOD_IN = Observation(
    "bpf", (), -22, None, Process(8, "/usr/bin/x"),
    (KernelCheck("BPF", False, "bpf_capable"), KernelCheck("SYS_ADMIN", True, "bpf_capable")),
)  # fmt: skip


@pytest.mark.parametrize("anyway", [True, False])
def test_a_workload_that_fails_anyway_is_told_what_nobody_could_grant(anyway):
    failed = report((), verified=False, minimal=False)
    facts = dataclasses.replace(failed.facts, not_granted=("SYS_RESOURCE", "BPF"))
    trace = dataclasses.replace(failed.trace, observations=(LIMIT, LIMIT, STOOD_IN), exit_code=1)
    verdict = failed.verdict if not anyway else dataclasses.replace(failed.verdict, runs=())
    assert failed.verdict.runs
    text = render(dataclasses.replace(failed, facts=facts, trace=trace, verdict=verdict), width=200)
    line = "refused, as nobody here can grant SYS_RESOURCE: prlimit64(7, RLIMIT_NOFILE, {100, 200}, NULL) = -1 EPERM"
    assert text.count(f"{line} by /usr/bin/prlimit") == anyway
    assert "nobody here can grant BPF" not in text


def test_a_workload_that_fails_on_a_read_only_sys_is_told_what_would_make_it_writable():
    failed = report((), verified=False, minimal=False)
    group = Observation("openat", ("AT_FDCWD",), -30, "/sys/fs/cgroup/memory/tasks", Process(7, "/bin/sh"))
    trace = dataclasses.replace(failed.trace, observations=(group, group), exit_code=1)
    verdict = dataclasses.replace(failed.verdict, runs=())
    text = render(dataclasses.replace(failed, trace=trace, verdict=verdict), width=300)
    assert text.count("only --privileged itself mounts /sys/fs/cgroup writable (-v /sys/fs/cgroup:/sys/fs/cgroup") == 1


@pytest.mark.parametrize("path", ["/sys/block/loop0/queue/scheduler", "/proc/sys/vm/swappiness"])
def test_a_command_that_would_change_this_host_is_told_that_the_sandbox_keeps_it(path):
    failed = report((), verified=False, minimal=False, native=True)
    refused = Observation("openat", ("AT_FDCWD",), -30, path, Process(7, "/bin/sh"))
    trace = dataclasses.replace(failed.trace, observations=(refused,), exit_code=1)
    verdict = dataclasses.replace(failed.verdict, runs=())
    text = render(dataclasses.replace(failed, trace=trace, verdict=verdict), width=300)
    assert "the sandbox leaves this host's /" in text
