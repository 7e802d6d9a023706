"""Kernel parameters in place of a writable /proc/sys."""

from __future__ import annotations

import dataclasses

import pytest

from profiler.catalogue.dangers import weight
from profiler.catalogue.paths import namespaced_sysctl
from profiler.catalogue.safer import advice
from profiler.model import Doubt, Observation, Process, Recipe, Requirement, SecurityOption, Sysctl
from profiler.synthesizer.parameters import with_sysctls
from profiler.synthesizer.reduce import stand_ins
from profiler.synthesizer.requirements import UNMASKED

FORWARD, MSGMAX = Sysctl("net.ipv4.ip_forward", "1"), Sysctl("kernel.msgmax", "9000")
VALUES = {FORWARD.key: FORWARD.value, MSGMAX.key: MSGMAX.value}
FORWARD_PATH, MSGMAX_PATH = "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/msgmax"


def written(*paths: str) -> Requirement:
    pieces = [Observation("openat", ("AT_FDCWD", f'"{path}"'), 3, path, Process(1, "/bin/sh"), (), 1) for path in paths]
    return Requirement((frozenset({UNMASKED}),), "the engine makes this path read-only", Doubt.LIKELY, tuple(pieces))


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (FORWARD_PATH, FORWARD.key),
        (MSGMAX_PATH, MSGMAX.key),
        ("/proc/sys/fs/mqueue/msg_max", "fs.mqueue.msg_max"),
        ("/proc/sys/kernel/core_pattern", None),
        ("/proc/sys/net/ipv4/conf/eth0.5/rp_filter", None),
        ("/proc/sysrq-trigger", None),
        ("/srv/proc/sys/net/ipv4/ip_forward", None),
    ],
)
def test_only_parameters_of_a_namespace_have_a_key(path: str, key: str | None) -> None:
    assert namespaced_sysctl(path) == key


def test_each_parameter_may_be_set_by_the_engine_instead() -> None:
    recipe: Recipe = frozenset({UNMASKED})
    rows = with_sysctls([written(FORWARD_PATH, MSGMAX_PATH)], VALUES)
    assert [row.alternatives[1:] for row in rows] == [(frozenset({FORWARD}),), (frozenset({MSGMAX}),)]
    assert [piece.path for row in rows for piece in row.evidence if isinstance(piece, Observation)] == [
        FORWARD_PATH,
        MSGMAX_PATH,
    ]
    assert stand_ins(rows, recipe, weight) == {UNMASKED: frozenset({FORWARD, MSGMAX})}


@pytest.mark.parametrize("path", ["/proc/sysrq-trigger", "/proc/sys/net/ipv4/ip_default_ttl"])
def test_what_the_engine_cannot_set_or_was_not_read_has_no_other_way(path: str) -> None:
    rows = with_sysctls([written(path)], VALUES)
    assert rows == (written(path),)
    assert not stand_ins(rows, frozenset({UNMASKED}), weight)


def test_the_advice_names_the_value() -> None:
    (found,) = advice(with_sysctls([written(FORWARD_PATH)], VALUES))
    assert found.flag == "--sysctl net.ipv4.ip_forward=1"
    other = dataclasses.replace(written(FORWARD_PATH), alternatives=(frozenset({SecurityOption("apparmor=x")}),))
    assert advice([other, *with_sysctls([written(FORWARD_PATH)], VALUES)]) == (found,)
    (found,) = advice([written(FORWARD_PATH)])
    assert found.flag == "--sysctl net.ipv4.ip_forward=VALUE"
