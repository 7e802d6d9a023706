"""What counts as refused although it had succeeded."""

import pytest

from profiler.model import (
    Capability,
    Device,
    DeviceUse,
    Doubt,
    KernelCheck,
    Observation,
    Process,
    RawCall,
    Requirement,
    Syscalls,
    Trace,
)
from profiler.synthesizer.denials import refusals
from profiler.synthesizer.divergences import calls_of, divergence, unmet

BY = Process(1, "/bin/chown")
CHOWN = frozenset({Capability("CHOWN")})


def observed(result, *, granted=True, args=("-1",)):
    return Observation("chown", args, result, "/f", BY, (KernelCheck("CHOWN", granted, "chown_ok"),))


def row(piece, alternative=CHOWN, doubt=Doubt.LIKELY):
    return Requirement((alternative,), "", doubt, (piece,))


def watched(*observations):
    return Trace(observations, (), (), {}, 0, 1.0)


REFUSED = watched(observed(-1, granted=False))


def test_a_call_that_succeeded_and_is_refused_diverges():
    assert divergence([row(observed(0))], REFUSED) == "chown(-1) is refused, and had succeeded"


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (observed(-2), REFUSED),  # it had failed before
        (observed(0), watched(observed(0, granted=False))),  # refused one thing, it succeeds by another
        (observed(0), watched(observed(-2))),  # it fails for another reason
        (observed(0), watched()),  # it is not made any more
    ],
)
def test_everything_else_does_not(before, now):
    assert divergence([row(before)], now) is None


def test_what_never_reaches_the_listener_is_told_all_the_same():
    keyctl = frozenset({Syscalls(("keyctl",))})
    assert "keyctl is denied" in divergence([row(RawCall("keyctl", 250, (0,) * 6, BY, 0), keyctl)], watched())
    assert divergence([row(RawCall("keyctl", 250, (0,) * 6, BY, -1), keyctl)], watched()) is None
    fuse = row(DeviceUse("/dev/fuse", "c", 10, 229, "rw", BY), frozenset({Device("/dev/fuse", "rw")}))
    assert "/dev/fuse is not there" in divergence([fuse], watched())


def test_only_what_is_unmet_and_may_matter_is_looked_at():
    rows = [row(observed(0)), row(observed(0), frozenset({Capability("KILL")}), Doubt.NEGLIGIBLE)]
    assert unmet(rows, CHOWN) == ()
    assert unmet(rows, frozenset()) == (rows[0],)
    assert calls_of(rows) == {"chown"}


def test_what_failed_is_told_before_what_was_refused_and_succeeded_all_the_same():
    succeeded, failed = observed(154, granted=False), observed(-1, granted=False)
    assert refusals(watched(succeeded, observed(0), failed), row(observed(0))) == (failed, succeeded)


def test_what_the_requirement_is_about_is_told_before_what_fails_beside_it():
    check = (KernelCheck("CHOWN", False, "somewhere"),)
    buffer = Observation("setsockopt", ("SO_SNDBUFFORCE",), -1, None, BY, check)
    rules = Observation("sendmsg", ("NETLINK_NETFILTER",), 20, None, BY, check)
    unstopped = Observation("sendmsg", (), None, None, BY, (KernelCheck("CHOWN", True, "somewhere"),))
    assert refusals(watched(buffer, rules), row(unstopped)) == (rules, buffer)
