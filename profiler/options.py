"""What the user asked of `run`, checked: the command line's words as one frozen value. Imports only errors."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path

from profiler.errors import UsageError

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
DEFAULT_PROVE_BUDGET = 120.0  # seconds
EXIT_CODES = 255  # the largest: wait(2)


class Seccomp(enum.StrEnum):
    """What to do about calls that the engine's default filter denies."""

    DEFAULT = "default"  # keep the engine's own filter: a workload that needs more stays unverified
    PROFILE = "profile"  # the engine's own filter plus exactly the missing calls
    OBSERVED = "observed"  # of that profile only the calls that were observed
    UNCONFINED = "unconfined"  # no filter at all


class Tracer(enum.StrEnum):
    """How the first run shows what the workload needs."""

    WATCH = "watch"  # it has every privilege, and what is asked for is watched
    DENY = "deny"  # it has no capability, and is given each that a call is refused for


class Network(enum.StrEnum):
    """Which network the embedded sandbox gives the workload."""

    PRIVATE = "private"
    HOST = "host"


class Prove(enum.StrEnum):
    """Whether each member's removal is tried by a rerun."""

    BUDGET = "budget"  # as far as the reruns fit into `prove_budget`
    ALL = "all"  # whatever it takes
    NONE = "none"


@dataclass(frozen=True)
class Options:
    """What `run` was asked to do. All durations are seconds; None means no limit."""

    output: Path | None = None  # where the manifest goes; None: nowhere
    prove: Prove = Prove.BUDGET
    prove_budget: float = DEFAULT_PROVE_BUDGET
    jobs: int = 1  # reruns at a time
    timeout: float | None = None  # of one run
    run_for: float | None = None  # a service is stopped after this time; a rerun that runs as long has passed
    until_healthy: bool = False  # a service is stopped as soon as the engine calls it healthy
    repeat: int = 1  # traced runs whose traces are merged
    strict: bool = False  # a rerun in which a call is denied that had succeeded does not pass
    exit_code: int = 0  # of a workload that has done its work
    keep_optional: bool = False  # keep what the workload asks for and passes without
    check: str | None = None  # shell command on this host after each run, or before a service is stopped: 0 is passed
    check_inside: str | None = None  # the same inside a service's container
    compare_output: bool = False  # stdout must be as in another run with every privilege
    expect: tuple[str, ...] = ()  # files, as the workload names them, that a run must produce as the traced one did
    tracer: Tracer = Tracer.WATCH
    seccomp: Seccomp = Seccomp.PROFILE
    network: Network = Network.PRIVATE
    quiet: bool = False  # no progress lines, only the report

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense and options that exclude each other (UsageError)."""
        if self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: at least one run at a time is needed", "leave --jobs out for one")
        if self.repeat < 1:
            raise UsageError(f"--repeat {self.repeat}: at least one traced run is needed", "leave --repeat out for one")
        for name, seconds in (("--timeout", self.timeout), ("--for", self.run_for)):
            if seconds is not None and seconds <= 0:
                raise UsageError(f"{name} must be longer than nothing", f"for example {name} 30s")
        if not 0 <= self.exit_code <= EXIT_CODES:
            raise UsageError(
                f"--exit-code {self.exit_code}: there is no such exit code", f"name one up to {EXIT_CODES}"
            )
        if self.prove_budget < 0:
            raise UsageError("--prove-budget cannot be negative", "use --no-prove to try no removals")
        if self.run_for is not None and self.until_healthy:
            raise UsageError(
                "--for and --until-healthy exclude each other",
                "use --until-healthy with --timeout to limit how long health may take",
            )
        if self.run_for is not None and self.timeout is not None and self.timeout <= self.run_for:
            raise UsageError(
                "--timeout ends the run before --for does", "make --timeout longer than --for, or leave it out"
            )
        if self.tracer is Tracer.DENY and self.seccomp is Seccomp.OBSERVED:
            raise UsageError(
                "--tracer deny makes calls of its own in the workload, which --seccomp observed would take for its",
                "leave one of them out",
            )
        service = self.run_for is not None or self.until_healthy
        if self.check_inside is not None and not service:
            raise UsageError(
                "--check-inside needs a container that still runs: an ordinary command's has ended by then",
                "add --for or --until-healthy, or let the command itself check and exit with its answer",
            )
        if self.compare_output and service:
            raise UsageError(
                "--compare-output is for commands that end: a service's output depends on when it is stopped",
                "use --check or --check-inside",
            )


def duration(text: str) -> float:
    """Seconds from `30`, `30s`, `500ms`, `5m` or `1h`; UsageError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a duration", "write for example 30s, 5m or 1h")
    return float(match[1]) * _UNITS[match[2] or ""]
