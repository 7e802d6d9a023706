"""Says plainly what a run in the guest did: a line a test that did not pass, and the counts.

`results.py DIRECTORY` reads DIRECTORY/junit.xml, which pytest wrote there. Exit code 0: no test failed; 1: one
did; 3: there is nothing to read. What was not reached before the run's deadline is told, and is no failure.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FAILED = ("failure", "error")


@dataclass(frozen=True)
class Outcome:
    """One test's end."""

    name: str  # class and function: tests.kernel.test_tracefs::test_…[id]
    kind: str  # passed, skipped, failure, error
    reason: str  # why it was skipped or how it failed, in one line
    seconds: float


def outcomes(junit: str) -> Iterator[Outcome]:
    """What the text of a junit.xml says of each test."""
    for case in ET.fromstring(junit).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        ends = [child for child in case if child.tag in ("skipped", *FAILED)]
        reason = " ".join((ends[0].get("message") or "").split()) if ends else ""
        yield Outcome(name, ends[0].tag if ends else "passed", reason, float(case.get("time", 0)))


def lines(found: list[Outcome], selected: int) -> Iterator[str]:
    """What to say of them, where `selected` tests were to run."""
    for outcome in found:
        if outcome.kind != "passed":
            yield f"{outcome.kind} {outcome.name}: {outcome.reason[:300]}"
        else:
            yield f"passed {outcome.name} in {outcome.seconds:.0f} s"
    kinds = [outcome.kind for outcome in found]
    failed = sum(kinds.count(kind) for kind in FAILED)
    counts = f"{kinds.count('passed')} passed, {failed} failed, {kinds.count('skipped')} skipped"
    missing = selected - len(found)
    yield counts + (f", {missing} not reached before the deadline" if missing > 0 else "")


def selected(log: str) -> int:
    """How many tests pytest was about to run, by its own log; 0 if it does not say."""
    found = re.search(r"\bcollected (\d+) items?(?:.* (\d+) selected)?", log)
    return int(found[2] or found[1]) if found else 0


def main(directory: Path) -> int:
    """See the module's first lines."""
    junit = directory / "junit.xml"
    if not junit.exists():
        print("guest: it ended without results")
        return 3
    found = list(outcomes(junit.read_text(encoding="utf-8")))
    log = directory / "pytest.log"
    for line in lines(found, selected(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else 0):
        print(f"guest: {line}")
    return 1 if any(outcome.kind in FAILED for outcome in found) else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
