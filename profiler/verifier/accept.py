"""What it means that a run passed: it ends as under every privilege, and whatever the user adds to that."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import dataclass

from profiler.model import Moved, Outcome

CHECK_TIMEOUT = 300.0  # seconds that a user's check may take
SHOWN = 60  # characters of a line that differs
# $0 is the check, then the user's place and the run's, in turn
_IN_PLACE = 'while [ $# -gt 0 ]; do mount --bind "$2" "$1" || exit; shift 2; done; exec /bin/sh -c "$0"'


@dataclass(frozen=True)
class Acceptance:
    """Compares an outcome with the run under every privilege.

    `exit_code` is that run's. `service`: a run that had to be stopped passed if there was nothing to complain of, one
    that ended before did not. `like` is a run whose standard output is compared with, where there is one. `check` is a
    shell command on this host that must exit with 0 after each run (a service is asked before it is stopped, by whoever
    stops it); `files` are those that the run must have produced, each with its digest (see `Outcome.files`).
    """

    exit_code: int
    service: bool = False
    like: Outcome | None = None
    check: str | None = None
    files: tuple[tuple[str, str], ...] = ()

    def __call__(self, outcome: Outcome) -> str | None:
        """None where the run passed, otherwise why it did not, in a few words."""
        if self.service:
            if outcome.stopped is None:
                return f"ended with exit code {outcome.exit_code} instead of running on{outcome.last_words()}"
            if outcome.stopped.complaint:
                return outcome.stopped.complaint
        elif outcome.timed_out:
            return f"did not end within {outcome.seconds:.0f} s"
        elif outcome.exit_code != self.exit_code:
            return f"exit code {outcome.exit_code}{outcome.last_words()}"
        if self.like is not None and (outcome.written, outcome.stdout) != (self.like.written, self.like.stdout):
            return f"its output differs: {difference(outcome, self.like)}"
        for path, wanted in self.files:
            found = outcome.files.get(path)
            if found != wanted:
                return f"{path} differs from that of the traced run" if found else f"{path} is not produced"
        if self.check is not None and not self.service:
            return checked(self.check, outcome.moved)
        return None


def difference(found: Outcome, wanted: Outcome) -> str:
    """Where the standard output of two runs differs, in a few words: the first line, as far as it was kept."""
    ours, theirs = _places(found), _places(wanted)
    if ours[0] != theirs[0]:  # what was kept of a longer output begins further on
        return f"{ours[1]} bytes instead of {theirs[1]}"
    for line, instead in itertools.zip_longest(_lines(found), _lines(wanted)):
        if line != instead:
            return f"{_shown(line)} instead of {_shown(instead)}"
    return f"before the last {len(found.stdout)} of its {ours[1]} bytes"


def _places(outcome: Outcome) -> tuple[int, int]:
    """Where in the whole output that begins which was kept, and how long the whole is, in bytes."""
    size = len(outcome.stdout) if outcome.written is None else outcome.written.size
    return size - len(outcome.stdout), size


def _lines(outcome: Outcome) -> list[str]:
    return outcome.stdout.decode("utf-8", "backslashreplace").split("\n")


def _shown(line: str | None) -> str:
    if line is None:
        return "nothing"
    return repr(line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…")


def checked(command: str, moved: Moved = ()) -> str | None:
    """Run the user's check on this host; None when it exits with 0, otherwise how it failed.

    Where the run had other places than the user's (`moved`), the check finds what the run left there under the user's
    own paths: it runs in a mount namespace of its own.
    """
    words = ["/bin/sh", "-c", command]
    if moved:
        places = [path for pair in moved for path in pair]
        words = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", _IN_PLACE, command, *places]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            timeout=CHECK_TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"the check did not end within {CHECK_TIMEOUT:.0f} s"
    if done.returncode == 0:
        return None
    outcome = Outcome(done.returncode, 0.0, stdout=done.stdout, stderr=done.stderr)
    return f"the check exited with {done.returncode}{outcome.last_words()}"
