"""When a service is stopped and what it is asked then, on a run that only answers."""

import pytest

from profiler.criteria import meaning, service_again, service_of
from profiler.errors import UsageError
from profiler.harness.service import Service
from profiler.model import Outcome, Stopped, Trace
from profiler.options import Options


class Answers:
    """A run whose health check answers in turn, and whose commands end with `code`."""

    def __init__(self, *healths, code=0):
        self.healths = list(healths) or [""]
        self.code = code
        self.ran = []

    moved = ()

    def health(self):
        return self.healths.pop(0) if len(self.healths) > 1 else self.healths[0]

    def inside(self, command):
        self.ran.append(command)
        return Outcome(self.code, 0.0, stderr=b"not there\n")


def goes_on(seconds):
    return False


def ends(seconds):
    return True


def test_it_is_stopped_after_its_time_unless_it_ends_before():
    waited = []
    assert Service(30.0).watch(Answers(), lambda seconds: bool(waited.append(seconds))) == Stopped()
    assert waited == [pytest.approx(30.0, abs=1.0)]
    assert Service(30.0).watch(Answers(), ends) is None


def test_it_is_stopped_once_it_is_healthy():
    assert Service(30.0, until_healthy=True).watch(Answers("starting", "healthy"), goes_on) == Stopped("", True)
    assert Service(30.0, until_healthy=True).watch(Answers("starting"), ends) is None
    assert Service(30.0, until_healthy=True).watch(Answers("unhealthy"), goes_on).complaint == "its health check fails"
    assert Service(30.0, until_healthy=True).watch(Answers("unhealthy"), ends) is None, "an engine says so of an end"
    late = Service(0.0, until_healthy=True).watch(Answers("starting"), goes_on)
    assert late.complaint == "it was not healthy within 0 s"


@pytest.mark.parametrize(
    ("health", "expected", "complaint"),
    [
        ("", False, ""),
        ("starting", False, ""),
        ("starting", True, "its health check does not pass (starting)"),
        ("healthy", True, ""),
        ("unhealthy", False, "its health check does not pass (unhealthy)"),
    ],
)
def test_its_health_counts_as_far_as_it_was_healthy_before(health, expected, complaint):
    stopped = Service(0.0, healthy=expected).watch(Answers(health), goes_on)
    assert (stopped.complaint, stopped.healthy) == (complaint, health == "healthy" and not complaint)
    assert ("--health-start-period" in stopped.hint) == (health == "unhealthy")


def test_it_is_asked_inside_and_from_the_host():
    running = Answers(code=1)
    stopped = Service(0.0, check_inside="test -e x").watch(running, goes_on)
    assert stopped.complaint == "the check inside exited with 1: not there"
    assert running.ran == ["test -e x"]
    assert Service(0.0, check=lambda moved: "no answer").watch(Answers(), goes_on).complaint == "no answer"
    assert Service(0.0, check=lambda moved: None).watch(Answers(), goes_on) == Stopped()


def trace(**changed):
    return Trace((), (), (), {}, changed.pop("exit_code", 0), 2.0, **changed)


def test_reruns_do_as_the_traced_run_did():
    options = Options(run_for=5.0)
    assert service_of(options).seconds == 5.0
    assert service_again(options, trace(stopped=Stopped(healthy=True))) == Service(5.0, healthy=True)
    assert service_again(options, trace()) is None, "it ended by itself"
    assert service_again(Options(), trace(interrupted=7.5)) == Service(7.5)
    assert service_of(Options()) is None
    healthy = service_again(Options(until_healthy=True), trace(stopped=Stopped(healthy=True)))
    assert (healthy.until_healthy, healthy.settle, healthy.seconds) == (True, 0.0, 18.0)


def test_what_passes_is_said_in_words():
    assert meaning(Options(), trace(exit_code=0)) == ("it exits with 0",)
    options = Options(check="curl x", expect=("a", "b"), compare_output=True, strict=True)
    assert meaning(options, trace()) == (
        "it exits with 0",
        "`curl x` exits with 0 on this host",
        "its output is that of a run with every privilege",
        "it leaves a as the traced run did",
        "it leaves b as the traced run did",
        "no call is refused in it that had succeeded",
    )
    words = meaning(Options(run_for=2.5, check_inside="i"), trace(stopped=Stopped(healthy=True)))
    assert words == ("it still runs after 2.5 s", "its health check passes", "`i` exits with 0 in the container")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"check_inside": "true"}, "--check-inside needs a container that still runs"),
        ({"compare_output": True, "run_for": 1.0}, "--compare-output is for commands that end"),
        ({"compare_output": True, "until_healthy": True}, "--compare-output is for commands that end"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, says):
    with pytest.raises(UsageError) as caught:
        Options(**options)
    assert caught.value.message.startswith(says)
    assert caught.value.hint
