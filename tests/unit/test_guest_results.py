"""What is said of a run in the guest, from the file that pytest writes there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "guest" / "results.py"


def case(name: str, inside: str = "", seconds: float = 1.0) -> str:
    return f'<testcase classname="tests.kernel.test_a" name="{name}" time="{seconds}">{inside}</testcase>'


PASSED = case("test_b", seconds=2.4)
SKIPPED = case("test_c", '<skipped message="no&#10;device" />')
FAILED = case("test_d", '<failure message="assert 1">x</failure>')
BROKEN = case("test_e", '<error message="setup">x</error>')


def said(directory: Path, *cases: str, log: str = "") -> tuple[int, str]:
    if cases:
        text = f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"
        (directory / "junit.xml").write_text(text, encoding="utf-8")
    (directory / "pytest.log").write_text(log, encoding="utf-8")
    done = subprocess.run([sys.executable, PROGRAM, directory], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_what_passed_and_what_was_skipped_and_why_are_told(tmp_path: Path) -> None:
    code, text = said(tmp_path, PASSED, SKIPPED, log="collecting ... collected 2 items\n")
    assert code == 0
    assert text.splitlines() == [
        "guest: passed tests.kernel.test_a::test_b in 2 s",
        "guest: skipped tests.kernel.test_a::test_c: no device",
        "guest: 1 passed, 0 failed, 1 skipped",
    ]


@pytest.mark.parametrize("failed", [FAILED, BROKEN])
def test_a_failure_fails(tmp_path: Path, failed: str) -> None:
    code, text = said(tmp_path, PASSED, failed)
    assert code == 1
    assert text.endswith("guest: 1 passed, 1 failed, 0 skipped\n")


@pytest.mark.parametrize("log", ["collected 5 items", "collecting ... collected 9 items / 4 deselected / 5 selected"])
def test_what_was_not_reached_is_told_and_is_no_failure(tmp_path: Path, log: str) -> None:
    code, text = said(tmp_path, PASSED, log=log)
    assert code == 0
    assert text.endswith("1 passed, 0 failed, 0 skipped, 4 not reached before the deadline\n")


def test_no_results_are_no_success(tmp_path: Path) -> None:
    assert said(tmp_path)[0] == 3
