"""What it means that a run passed: it ends as under every privilege, and whatever the user adds to that."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.model import Outcome

CHECK_TIMEOUT = 300.0  # seconds that a user's check may take


@dataclass(frozen=True)
class Acceptance:
    """Compares an outcome with the run under every privilege.

    `exit_code` is that run's. `service`: a run that had to be stopped passed if there was nothing to complain of, one
    that ended before did not. `stdout` is compared where it is given. `check` is a shell command on this host that must
    exit with 0 after each run (a service is asked before it is stopped, by whoever stops it); `files` are those that
    the run must have left with these contents (a digest each).
    """

    exit_code: int
    service: bool = False
    stdout: bytes | None = None
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
        if self.stdout is not None and outcome.stdout != self.stdout:
            return "its output differs"
        for path, wanted in self.files:
            if digest(path) != wanted:
                return f"{path} differs from what the first run left"
        if self.check is not None and not self.service:
            return checked(self.check)
        return None


def checked(command: str) -> str | None:
    """Run the user's check on this host; None when it exits with 0, otherwise how it failed."""
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
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


def digest(path: str) -> str:
    """SHA-256 of a file's content with its mode and owner; empty when it does not exist or cannot be read."""
    try:
        status = Path(path).stat()
        content = Path(path).read_bytes()
    except OSError:
        return ""
    return f"{hashlib.sha256(content).hexdigest()}:{status.st_mode:o}:{status.st_uid}:{status.st_gid}"


def digests(paths: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The digest of each of `paths`, as `Acceptance.files` takes them."""
    return tuple((path, digest(path)) for path in paths)
