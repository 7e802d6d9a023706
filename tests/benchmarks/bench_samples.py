"""How far the samples come in how many reruns: with two runs alone (trace, verify), and with removal. Needs Docker."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import by_hand  # noqa: E402 (found by the line above)
from by_hand import ByHand, Sample  # noqa: E402


@dataclass(frozen=True)
class Found:
    """One profile of a sample: its reruns, and in words what its recipe has too much or too little (empty: exact)."""

    reruns: int
    wrong: str


@dataclass(frozen=True)
class Row:
    """A sample with `--no-prove` and with `--prove`."""

    sample: str
    unproved: Found
    proved: Found


def measure(tell: Callable[[str], None]) -> list[Row]:
    """Profile every sample both ways. Raises RuntimeError for one that capprofile does not get to its end."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="capprofile-samples-") as scratch:
        for sample in by_hand.samples():
            expected = sample.recipes(by_hand.has_apparmor())
            found = [
                _profiled(sample, Path(scratch) / "m.json", option, expected) for option in ("--no-prove", "--prove")
            ]
            rows.append(Row(sample.name, *found))
            tell(f"{sample.name}: {rows[-1].unproved}, {rows[-1].proved}")
    return rows


def _profiled(sample: Sample, manifest: Path, option: str, expected: Sequence[ByHand]) -> Found:
    done = by_hand.profile(sample, manifest, option)
    if done.returncode != 0:
        raise RuntimeError(f"{sample.name}: capprofile {option} ended with {done.returncode}: {done.stderr[-1000:]}")
    document: dict[str, Any] = json.loads(manifest.read_text("utf-8"))
    wrong = [by_hand.difference(document["recipe"], one) for one in expected]
    return Found(len(document["verification"]["runs"]), "" if "" in wrong else wrong[0])


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, and below it how often two runs were enough."""
    lines = [
        "| Sample | Reruns until it passes | Recipe then | Reruns with removal | Recipe then |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [cell for found in (row.unproved, row.proved) for cell in (str(found.reruns), found.wrong or "exact")]
        lines.append(f"| {row.sample} | {' | '.join(cells)} |")
    enough = sum(row.unproved.reruns == 1 and not row.unproved.wrong for row in rows)
    exact = sum(not row.proved.wrong for row in rows)
    return "\n".join(
        [
            *lines,
            "",
            f"Two runs (trace, verify) gave the exact recipe of {enough} of {len(rows)} samples, removal of {exact}.",
            "",
        ]
    )
