"""When a run passes, and what is said when it does not."""

import pytest

from profiler.model import Outcome
from profiler.verifier.accept import Acceptance, checked, digests


def test_the_exit_code_of_the_run_with_every_privilege_passes():
    assert Acceptance(0)(Outcome(0, 1.0)) is None
    assert Acceptance(3)(Outcome(3, 1.0)) is None
    assert Acceptance(0)(Outcome(1, 1.0)) == "exit code 1"


def test_a_run_that_hangs_fails_unless_it_is_a_service():
    assert "did not end" in Acceptance(0)(Outcome(137, 9.0, timed_out=True))
    assert Acceptance(0, service=True)(Outcome(137, 9.0, timed_out=True)) is None
    assert "instead of running on" in Acceptance(0, service=True)(Outcome(0, 1.0))


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        (b"", "exit code 1"),
        (b"mount: /mnt: permission denied.\n       dmesg(1) may have more\n", "exit code 1: mount: /mnt: permission denied."),
        (b"one\ntwo\n\n", "exit code 1: two"),
        (b"caf\xe9\n", "exit code 1: caf\ufffd"),
    ],
)  # fmt: skip
def test_the_refusal_is_quoted_and_else_the_last_line(stderr, words):
    assert Acceptance(0)(Outcome(1, 1.0, stderr=stderr)) == words


def test_output_is_compared_where_it_is_given():
    assert Acceptance(0, stdout=b"a")(Outcome(0, 1.0, stdout=b"a")) is None
    assert Acceptance(0, stdout=b"a")(Outcome(0, 1.0, stdout=b"b")) == "its output differs"


def test_a_users_check_decides():
    assert checked("true") is None
    assert checked("echo not there >&2; exit 3") == "the check exited with 3: not there"
    assert Acceptance(0, check="false")(Outcome(0, 1.0)) == "the check exited with 1"


def test_files_must_be_as_the_first_run_left_them(tmp_path):
    made = tmp_path / "made"
    made.write_text("content")
    accepts = Acceptance(0, files=digests([str(made)]))
    assert accepts(Outcome(0, 1.0)) is None
    made.chmod(0o4755)
    assert "differs" in accepts(Outcome(0, 1.0))
    made.unlink()
    assert "differs" in accepts(Outcome(0, 1.0))
