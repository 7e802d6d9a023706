"""`python tests/benchmarks`: measures what tracing costs and prints it as the README's table. Needs root on Linux."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this very checkout

import bench_samples
from bench_measure import measure, table
from bench_work import SMALL, WORKS, scaled


def main(words: list[str]) -> None:
    """Run the chosen works; the table goes to standard output, a line a round to standard error."""
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often the three are run in turn (default 5)")
    parser.add_argument("--small", action="store_true", help="a few seconds' worth of work")
    parser.add_argument("--divide", type=int, default=1, metavar="N", help="do the N-th part of the work")
    parser.add_argument("--only", default="", metavar="WORD", help="only works with this word in their name")
    parser.add_argument("--samples", action="store_true", help="count the samples' reruns instead (needs Docker)")
    given = parser.parse_args(words)
    if given.samples:
        sys.stdout.write(bench_samples.table(bench_samples.measure(_tell)))
        return
    size = SMALL if given.small else scaled(given.divide)
    results = []
    for work in WORKS:
        if given.only not in work.name:
            continue
        if missing := work.missing():
            sys.stderr.write(f"{work.name}: left out, this machine has no {missing}\n")
            continue
        results.append(measure(work, size, given.rounds, _tell))
    sys.stdout.write(table(results))


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
