"""What was asked for and left out: a line each, and one for all calls that a filter refuses."""

import pytest
from sample_report import report

from profiler.model import Capability, Syscalls
from profiler.report.table import render

REFUSED = "by /usr/bin/perf; the engine's default seccomp filter refuses this call"


@pytest.mark.parametrize(
    ("calls", "line"),
    [
        (["keyctl"], f"left out: seccomp:keyctl (passes without it): keyctl(1) {REFUSED}"),
        (
            ["set_mempolicy", "get_mempolicy"],
            "left out: seccomp:get_mempolicy seccomp:set_mempolicy (passes without them): such as "
            f"get_mempolicy(1) {REFUSED}",
        ),
    ],
)
def test_refused_calls_are_one_line(calls, line):
    optional = {Syscalls((name,)): f"{name}(1) {REFUSED}" for name in calls}
    text = render(report(optional={Capability("SYSLOG"): "syslog(10) by /bin/dmesg", **optional}), width=250)
    left_out = [found for found in text.splitlines() if found.startswith("left out")]
    assert left_out == ["left out: SYSLOG (passes without it): syslog(10) by /bin/dmesg", line]


def test_what_one_call_asks_for_is_one_line():
    tried = "capset({pid=0}, {effective=CHOWN,KILL}) by /usr/bin/crun"
    optional = {Capability("KILL"): tried, Capability("CHOWN"): tried, Capability("SYSLOG"): "syslog(10) by /bin/dmesg"}
    text = render(report(optional=optional), width=250)
    assert [found for found in text.splitlines() if found.startswith("left out")] == [
        f"left out: CHOWN KILL (passes without them): {tried}",
        "left out: SYSLOG (passes without it): syslog(10) by /bin/dmesg",
    ]
