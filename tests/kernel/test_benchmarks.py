"""The benchmarks (tests/benchmarks) in small: they run, nothing is lost, and tracing is not absurdly slow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from bench_measure import measure, table
from bench_work import SMALL, WORKS, Work

pytestmark = pytest.mark.kernel

FACTOR, SECONDS = 20, 10  # slower than strace by more than both is a mistake, whatever else the machine does


@pytest.mark.parametrize("work", [work for work in WORKS if "install" not in work.name], ids=lambda work: work.name)
def test_nothing_is_lost_and_tracing_is_quick_enough(work: Work) -> None:
    if missing := (work.missing() or Work("", work.prepare, ("strace",)).missing()):
        pytest.skip(f"this machine has no {missing}")
    found = measure(work, SMALL, rounds=1)
    assert found.losses == {}
    assert found.ours[0].passed < FACTOR * found.strace[0].passed + SECONDS
    assert found.work in table([found])


def test_only_the_calls_that_tell_something_are_stopped() -> None:
    """Giving a file to root, as unpacking does with each, costs no stop; giving it to somebody else costs one."""
    roots, mixed = (work for work in WORKS if "unpack" in work.name)
    assert measure(roots, SMALL, rounds=1).stops < SMALL.files / 10
    assert measure(mixed, SMALL, rounds=1).stops >= SMALL.files / 3
