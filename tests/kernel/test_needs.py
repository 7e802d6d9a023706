"""Each claim about a capability, live: a call that needs it is profiled, and what is found is taken away again.

The calls are those of tests/accuracy/native_calls.toml. The recipe is judged by an oracle that shares no code with the
sandbox: the call passes with exactly the recipe, and fails without each of its members.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

import pytest
from pace import SLOWER

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))

import native_accuracy
import native_oracle

from profiler import pipeline
from profiler.harness.native.sandbox import NativeSandbox
from profiler.options import Options, Prove

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]
CALLS = native_accuracy.workloads("native_calls.toml")
SECONDS = 30.0 * SLOWER  # for one run of the oracle


def test_the_calls_program_is_here() -> None:
    """Without it every call would fail, and be left out as one that cannot work on this host."""
    assert Path(native_accuracy.PYTHON).exists(), "install python3"


@pytest.mark.parametrize("argv", CALLS.values(), ids=CALLS.keys())
def test_the_recipe_is_exact(argv: list[str], tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):  # some calls are an ordinary user's
        directory.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": "/root"}
    with closing(NativeSandbox(tuple(argv), cwd=str(tmp_path), env=environment)) as sandbox:
        report = pipeline.profile(sandbox, Options(prove=Prove.ALL), lambda line: None)
    if not report.verdict.verified and report.trace.exit_code != 0:
        pytest.skip(f"fails on this host even with every privilege: exit code {report.trace.exit_code}")
    assert report.verdict.verified
    assert report.verdict.minimal
    members = frozenset(privilege.label for privilege in report.verdict.recipe)
    assert native_oracle.passes(argv, members, SECONDS, tmp_path)
    spare = {member for member in members if native_oracle.passes(argv, members - {member}, SECONDS, tmp_path)}
    assert not spare
