"""The one family of expected failures.

Every failure that a user can cause or meet ends as a `ProfilerError`: one line that names the thing, one line of mend,
and the exit code of the README's table. Only `cli` prints it. Anything else that escapes is a bug (exit code 1).
"""

from __future__ import annotations

EXIT_VERIFIED = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_HOST = 3
EXIT_WORKLOAD = 4
EXIT_UNVERIFIED = 5


class ProfilerError(Exception):
    """An expected failure: `message` names the thing, `hint` the mend, `exit_code` what the process answers."""

    exit_code = EXIT_INTERNAL

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ProfilerError):
    """The command line, or a file that it names, cannot be used as it is."""

    exit_code = EXIT_USAGE


class HostError(ProfilerError):
    """This host or its engine cannot do what was asked."""

    exit_code = EXIT_HOST


class WorkloadError(ProfilerError):
    """The workload fails even with every privilege."""

    exit_code = EXIT_WORKLOAD


class UnverifiedError(ProfilerError):
    """No recipe was found with which the workload passes."""

    exit_code = EXIT_UNVERIFIED
