"""Names of capabilities in a workload's words."""

import dataclasses

import pytest

from profiler.model import Capability, Observation, Process, Trace
from profiler.synthesizer.named import named

GRANTABLE = frozenset({"NET_RAW", "SYS_TIME"})


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("--has-p=cap_sys_time", {"SYS_TIME"}),
        ("capsh --print | grep CAP_NET_RAW,cap_sys_time+ep", {"NET_RAW", "SYS_TIME"}),
        ("cap_sys_boot", set()),
        ("handicap_net_raw cap_net_raw2 cap_net_rawness net_raw", set()),
    ],
)
def test_only_whole_names_of_what_can_be_granted_count(word, names):
    process = Process(7, "/bin/sh", ("sh", "-c", word))
    trace = Trace((Observation("read", (), 0, None, process),), (), (), {}, 0, 0.0)
    wanted = {Capability(name) for name in names}
    assert named((), trace, GRANTABLE) == wanted
    assert named(("sh", word), dataclasses.replace(trace, observations=()), GRANTABLE) == wanted
