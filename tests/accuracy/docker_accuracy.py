"""Profiles the Docker corpus and holds each recipe against the oracle. `python tests/accuracy/docker_accuracy.py`.

Prints a line a workload: exact or what is too much or missing, how many reruns capprofile made and how long it took.
`--no-prove` counts how often the traced run and one rerun suffice. Names given as arguments select workloads (`*` and
`?` as in a shell). What capprofile printed is kept with `--keep DIRECTORY`. Exit code 1 when a recipe is not exact.

Takes about half an hour for all; not a part of `make test`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import docker_images  # noqa: E402 (found by the line above)
import docker_oracle  # noqa: E402
import images  # noqa: E402

CORPUS = Path(__file__).with_name("docker_corpus.toml")
LIMIT = 400.0  # seconds that one profile may take


@dataclass(frozen=True)
class Row:
    """One workload's line: `verdict` is `exact`, or what is wrong in a few words."""

    name: str
    verdict: str
    members: tuple[str, ...] = ()
    spare: int = 0
    reruns: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.verdict:44} {self.name:32} {self.reruns:3} reruns {self.seconds:6.1f} s  {' '.join(self.members)}"
        )


def workloads(patterns: list[str]) -> list[dict[str, Any]]:
    """The corpus, or those of it whose name matches one of the patterns."""
    entries: list[dict[str, Any]] = tomllib.loads(CORPUS.read_text("utf-8"))["workload"]
    return [e for e in entries if not patterns or any(fnmatch.fnmatch(e["name"], p) for p in patterns)]


def image_of(entry: dict[str, Any]) -> str:
    """The tag of a workload's image, built if it is not there."""
    own = (docker_images.services, docker_images.building, docker_images.networking, docker_images.observing)
    builders = {**images.BASES, **{builder.__name__: builder for builder in own}}
    base: str = builders[entry["image"]]()
    return images.derived(f"accuracy-{entry['name']}", base, entry["build"]) if "build" in entry else base


def docker_run(entry: dict[str, Any]) -> list[str]:
    """The command that is profiled."""
    words: list[str] = entry.get("command", [])
    if "script" in entry:
        words = ["sh", "-ec", entry["script"].strip() + "\n"]
    # Nothing leaves the container: its own loopback is all that the corpus talks to.
    flags = ["--rm", "--privileged", "--network=none", *entry.get("flags", [])]
    return ["docker", "run", *flags, image_of(entry), *words]


def measure(entry: dict[str, Any], options: list[str], keep: Path) -> Row:
    """Profile one workload, then ask the oracle."""
    manifest = keep / f"{entry['name']}.json"
    manifest.unlink(missing_ok=True)
    command = [sys.executable, "-m", "profiler.cli", "run", *options, "-o", str(manifest), "--", *docker_run(entry)]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
            timeout=LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Row(entry["name"], f"no end within {LIMIT:.0f} s", seconds=LIMIT)
    seconds = time.monotonic() - began
    (keep / f"{entry['name']}.txt").write_text(done.stdout + "\n--- stderr\n" + done.stderr)
    if done.returncode != 0:
        return Row(entry["name"], f"capprofile ended with {done.returncode}", seconds=seconds)
    document = json.loads(manifest.read_text("utf-8"))
    recipe, reruns = document["recipe"], len(document["verification"]["runs"])
    judgement = docker_oracle.judge(recipe["docker_command"], recipe.get("syscalls", ()))
    words = [f"spare {name}" for name in judgement.spare]
    words += [f"fails {judgement.failing} of 2"] if judgement.failing else []
    words += ["called unproved"] if document["verification"]["minimal"] != "proved" and judgement.exact else []
    return Row(entry["name"], ", ".join(words) or "exact", judgement.members, len(judgement.spare), reruns, seconds)


def main() -> int:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-prove", action="store_true")
    parser.add_argument("--tracer", default="watch", help="passed on to capprofile")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    options = ["--no-prove" if arguments.no_prove else "--prove", "--tracer", arguments.tracer]
    rows = []
    with tempfile.TemporaryDirectory(prefix="capprofile-accuracy-") as scratch:
        keep = arguments.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        for entry in workloads(arguments.names):
            rows.append(measure(entry, options, keep))
            print(rows[-1], flush=True)
    exact = [row for row in rows if row.verdict == "exact"]
    found = [row for row in rows if row.reruns]
    members = sum(len(row.members) for row in found)
    spare = sum(row.spare for row in found)
    print(f"{len(exact)} of {len(rows)} exact; {members - spare} of {members} members needed; "
          f"{sum(row.reruns for row in found)} reruns, {sum(row.seconds for row in rows):.0f} s; "
          f"{sum(row.reruns == 1 for row in found)} with a single rerun")  # fmt: skip
    return 0 if len(exact) == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
