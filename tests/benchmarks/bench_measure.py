"""Runs one work untraced, traced by capprofile and under strace, in the same embedded sandbox, turn by turn.

Seconds of one machine say nothing about another, so only ratios within a round are told: the three follow each other
immediately, and a round that the machine disturbed is one of several. Processor time is told beside the time that
passes: it counts what the tracer itself uses, too, and other work on the machine hardly changes it.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench_work import Size, Work

from profiler.catalogue.calls import catalogue
from profiler.harness.native.sandbox import NativeSandbox
from profiler.model import Trace
from profiler.tracer.session import trace


@dataclass(frozen=True)
class Cost:
    """One run: the seconds that passed from the work's first instruction to its end, and all processor time for it
    (the work's, its sandbox's and the tracer's)."""

    passed: float
    processor: float


@dataclass
class Measured:
    """What the rounds of one work showed, and what the last trace saw; `losses` of all of them."""

    work: str
    plain: list[Cost] = field(default_factory=list)
    ours: list[Cost] = field(default_factory=list)
    strace: list[Cost] = field(default_factory=list)
    stops: int = 0
    processes: int = 0
    losses: dict[str, int] = field(default_factory=dict)

    def passed(self, costs: Sequence[Cost]) -> list[float]:
        """Each round's time that passed, to the same round's untraced run."""
        return [one.passed / plain.passed for one, plain in zip(costs, self.plain, strict=False)]

    def processor(self, costs: Sequence[Cost]) -> list[float]:
        """The same for processor time."""
        return [one.processor / plain.processor for one, plain in zip(costs, self.plain, strict=False)]


class RunFailed(RuntimeError):
    """The work itself failed: nothing can be compared then."""


@contextmanager
def prepared(work: Work, size: Size) -> Iterator[tuple[str, ...]]:
    """The work's command, with its input in a directory that is removed afterwards."""
    place = Path(tempfile.mkdtemp(prefix="capprofile-bench-"))
    place.chmod(0o755)
    try:
        yield work.prepare(place, size)
    finally:
        shutil.rmtree(place)


@contextmanager
def _sandbox(argv: tuple[str, ...]) -> Iterator[NativeSandbox]:
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    sandbox = NativeSandbox(argv, cwd="/", env={**env, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"})
    try:
        yield sandbox
    finally:
        sandbox.close()


def _processor_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def untraced(argv: tuple[str, ...]) -> Cost:
    """The work alone, in the sandbox, with every privilege."""
    before = _processor_seconds()
    with _sandbox(argv) as sandbox:
        outcome = sandbox.rerun(sandbox.broad(), timeout=None)
    if outcome.exit_code != 0:
        raise RunFailed(f"{argv[0]} answered {outcome.exit_code}: {outcome.stderr.decode(errors='replace')[-500:]}")
    return Cost(outcome.seconds, _processor_seconds() - before)


def traced(argv: tuple[str, ...]) -> tuple[Cost, Trace]:
    """The work while capprofile traces it, in the same sandbox, and what it saw."""
    before = _processor_seconds()
    with _sandbox(argv) as sandbox:
        found = trace(sandbox.start(sandbox.broad(), quiet=True))
    if found.exit_code != 0:
        raise RunFailed(f"{argv[0]} answered {found.exit_code} while it was traced")
    return Cost(found.seconds, _processor_seconds() - before), found


def under_strace(argv: tuple[str, ...]) -> Cost:
    """The work under strace, which stops the same calls by a seccomp filter too (but whatever their arguments)."""
    calls = ",".join(f"?{name}" for name in sorted(catalogue().calls))
    return untraced(("strace", "-f", "--seccomp-bpf", "-e", f"trace={calls}", "-o", "/dev/null", *argv))


def measure(work: Work, size: Size, rounds: int, tell: Callable[[str], None] = lambda line: None) -> Measured:
    """Run the three in turn, `rounds` times; `tell` gets a line a round. Raises RunFailed."""
    found = Measured(work.name)
    strace = shutil.which("strace") is not None
    with prepared(work, size) as argv:
        untraced(argv)  # files into memory
        for number in range(1, rounds + 1):
            found.plain.append(untraced(argv))
            ours, seen = traced(argv)
            found.ours.append(ours)
            if strace:
                found.strace.append(under_strace(argv))
            found.stops = sum(call.count for call in seen.raw_calls)
            found.processes = seen.processes
            for name, count in seen.losses.items():
                found.losses[name] = found.losses.get(name, 0) + count
            tell(f"{work.name}, round {number} of {rounds}: {_line(found)}")
    return found


def _line(found: Measured) -> str:
    last = (("untraced", found.plain), ("capprofile", found.ours), ("strace", found.strace))
    return ", ".join(
        f"{name} {costs[-1].passed:.2f} s ({costs[-1].processor:.2f} s of processor)" for name, costs in last if costs
    )


def spread(ratios: Sequence[float]) -> str:
    """Median and range of some ratios: `1.04 (1.02–1.09)`; a dash for none."""
    if not ratios:
        return "–"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def table(results: Sequence[Measured]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| Work | Processes | Calls stopped | Time: capprofile | strace | Processor time: capprofile | strace |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in results:
        cells = [
            one.work, f"{one.processes:,}", f"{one.stops:,}",
            spread(one.passed(one.ours)), spread(one.passed(one.strace)),
            spread(one.processor(one.ours)), spread(one.processor(one.strace)),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
