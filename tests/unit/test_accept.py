"""When a run passes, and what is said when it does not."""

import os

import pytest

from profiler.harness.stream import TAIL, Stream
from profiler.model import Outcome, Stopped
from profiler.verifier.accept import Acceptance, checked


def test_the_exit_code_of_the_run_with_every_privilege_passes():
    assert Acceptance(0)(Outcome(0, 1.0)) is None
    assert Acceptance(3)(Outcome(3, 1.0)) is None
    assert Acceptance(0)(Outcome(1, 1.0)) == "exit code 1"


def test_a_run_that_hangs_fails_unless_it_is_a_service():
    assert "did not end" in Acceptance(0)(Outcome(137, 9.0, timed_out=True))
    assert Acceptance(0, service=True)(Outcome(137, 9.0, timed_out=True, stopped=Stopped())) is None
    complained = Outcome(137, 9.0, timed_out=True, stopped=Stopped("its health check fails"))
    assert Acceptance(0, service=True)(complained) == "its health check fails"
    assert "instead of running on" in Acceptance(0, service=True)(Outcome(0, 1.0))


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        (b"", "exit code 1"),
        (b"mount: /mnt: denied.\n       dmesg(1) may have more\n", "exit code 1: mount: /mnt: denied."),
        (b"one\ntwo\n\n", "exit code 1: two"),
        (b"caf\xe9\n", "exit code 1: caf\ufffd"),
    ],
)  # fmt: skip
def test_the_refusal_is_quoted_and_else_the_last_line(stderr, words):
    assert Acceptance(0)(Outcome(1, 1.0, stderr=stderr)) == words


def wrote(output):
    """A run's outcome as the harness reads it, from a pipe."""
    stream = Stream()
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb") as writer:
        for start in range(0, len(output), 4096):
            writer.write(output[start : start + 4096])
            writer.flush()
            stream.read(reader.fileno())
    return Outcome(0, 1.0, stdout=stream.tail, written=stream.written)


LONG = b"line\n" * (TAIL // 4)


@pytest.mark.parametrize(
    ("output", "other", "where"),
    [
        (b"", b"a", "'' instead of 'a'"),
        (b"one\ntwo\n", b"one\n2\n", "'two' instead of '2'"),
        (b"one\n", b"one", "'' instead of nothing"),
        (b"\xff", b"\xfe", r"'\\xff' instead of '\\xfe'"),
        (b"x" * 100, b"y", f"'{'x' * 59}…' instead of 'y'"),
        (LONG + b"1", LONG + b"2", "'1' instead of '2'"),
        (LONG + b"1", LONG, f"{len(LONG) + 1} bytes instead of {len(LONG)}"),
        (b"1" + LONG, b"2" + LONG, f"before the last {TAIL} of its {len(LONG) + 1} bytes"),
    ],
)
def test_all_of_the_output_is_compared_where_it_is_given(output, other, where):
    assert Acceptance(0, like=wrote(output))(wrote(output)) is None
    assert Acceptance(0, like=wrote(other))(wrote(output)) == f"its output differs: {where}"


def test_a_users_check_decides():
    assert checked("true") is None
    assert checked("echo not there >&2; exit 3") == "the check exited with 3: not there"
    assert Acceptance(0, check="false")(Outcome(0, 1.0)) == "the check exited with 1"


def test_a_services_check_is_not_asked_again_once_it_is_stopped():
    assert Acceptance(0, service=True, check="false")(Outcome(0, 1.0, stopped=Stopped())) is None


def test_files_must_be_produced_as_the_traced_run_did():
    accepts = Acceptance(0, files=(("made", "abc"),))
    assert accepts(Outcome(0, 1.0, files={"made": "abc"})) is None
    assert accepts(Outcome(0, 1.0, files={"made": "abd"})) == "made differs from that of the traced run"
    assert accepts(Outcome(0, 1.0, files={"made": ""})) == "made is not produced"
    assert accepts(Outcome(0, 1.0)) == "made is not produced"
