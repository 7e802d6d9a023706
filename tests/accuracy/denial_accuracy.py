"""How much one denied run finds: each workload of the embedded sandbox is run once, from the empty set.

    sudo python tests/accuracy/denial_accuracy.py [-o FILE] [NAME…]

What the run was refused, and what cannot be refused (devices, sets that are only listed), is a recipe; the oracle of
`native_accuracy.py` says whether the workload passes with it, and without each member. One line a workload. Not part of
`make test`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import native_accuracy  # noqa: E402 (found by the line above)
import native_oracle  # noqa: E402

from profiler.errors import ProfilerError  # noqa: E402
from profiler.harness.native.sandbox import NativeSandbox  # noqa: E402
from profiler.model import Capability, Doubt, Recipe, Trace  # noqa: E402
from profiler.options import Seccomp  # noqa: E402
from profiler.tracer.denial.denial import Denying  # noqa: E402
from profiler.tracer.session import trace  # noqa: E402
from profiler.understanding import Understanding  # noqa: E402


def found(traced: Trace, sandbox: NativeSandbox) -> Recipe:
    """What the run was given, with what it shows to be needed beside that; what is doubtful where it failed."""
    assert traced.denial is not None
    given = frozenset(Capability(refusal.capability) for refusal in traced.denial.refusals)
    understanding = Understanding(sandbox, sandbox.facts().grantable, traced, Seccomp.PROFILE)
    return given | understanding.recipe(Doubt.EVEN if traced.exit_code == 0 else Doubt.DOUBTFUL)


def measure(argv: list[str]) -> dict[str, object]:
    """One workload's row."""
    with tempfile.TemporaryDirectory(prefix="accuracy-", dir="/var/tmp") as place:
        Path(place).chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "HOME": "/root"}
        with closing(NativeSandbox(tuple(argv), cwd=place, env=environment)) as sandbox:
            began = time.monotonic()
            try:
                traced = trace(
                    sandbox.start(sandbox.broad(), quiet=True),
                    timeout=native_accuracy.LIMIT,
                    denying=Denying(frozenset(), sandbox.facts().grantable),
                )
            except ProfilerError as error:
                return {"verdict": "impossible", "why": error.message, "members": [], "seconds": 0.0}
            seconds = round(time.monotonic() - began, 2)
            recipe, everything = found(traced, sandbox), sandbox.broad()
        members = frozenset(member.label for member in recipe)
        row = {"members": sorted(members), "seconds": seconds, "exit": traced.exit_code, "losses": dict(traced.losses)}
        if not native_oracle.passes(argv, members, native_accuracy.LIMIT, Path(place)):
            all_ = frozenset(member.label for member in everything)
            able = native_oracle.passes(argv, all_, native_accuracy.LIMIT, Path(place))
            return {**row, "verdict": "fails" if able else "cannot"}
        spare = sorted(
            m for m in members if native_oracle.passes(argv, members - {m}, native_accuracy.LIMIT, Path(place))
        )
        return {**row, "verdict": "more" if spare else "exact", "spare": spare}


def main() -> int:
    """Measure the named workloads (all by default)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("names", nargs="*", help="regular expressions; all by default")
    options = parser.parse_args()
    wanted = re.compile("|".join(f"(?:{name})" for name in options.names) or ".*")
    rows: list[dict[str, object]] = []
    for name, argv in native_accuracy.workloads().items():
        if not wanted.fullmatch(name):
            continue
        row = {"name": name, **measure(argv)}
        rows.append(row)
        notes = [f"spare: {' '.join(row['spare'])}"] if row.get("spare") else []
        notes += [f"exit {row['exit']}"] if row.get("exit") else []
        notes += [str(row["why"])] if "why" in row else []
        print(f"{row['verdict']:10} {name:28} {row['seconds']:>6} s  {' '.join(row['members'])}  {'; '.join(notes)}",
              flush=True)  # fmt: skip
        if options.output:
            options.output.write_text(json.dumps(rows, indent=1))
    for verdict in ("exact", "more", "fails", "cannot", "impossible"):
        print(f"{sum(row['verdict'] == verdict for row in rows)} {verdict}", end="; ")
    print(f"of {len(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
