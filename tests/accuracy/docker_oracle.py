"""An oracle of Docker recipes that shares no code with capprofile: plain `docker run`, with and without each member.

`judge` takes the command that a manifest prints, runs it as it is, and then without each `--cap-add`, `--device` (the
nodes of a pool are one member), `--security-opt` and `--sysctl`. A recipe is exact when it passes with all of them and
fails without each. Needs an engine; raises nothing: a run that does not end in time has failed.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MEMBERS = ("--cap-add", "--device", "--device-cgroup-rule", "--security-opt", "--sysctl")
RUN_LIMIT = 30.0  # seconds


@dataclass(frozen=True)
class Judgement:
    """What the oracle found. `failing`: how many of the runs with all members failed; `spare`: members without which
    it passes; `members` all of them, by name."""

    members: tuple[str, ...]
    failing: int
    spare: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether nothing is missing and nothing too much."""
        return not self.failing and not self.spare


def judge(command: Sequence[str], calls: Sequence[str] = (), *, runs: int = 2, jobs: int = 2) -> Judgement:
    """Rerun `command` (`docker run …`) `runs` times with all its members and once without each.

    `calls` are those that its seccomp profile opens beyond the engine's own.
    """
    parts = members_of(command, calls)
    with tempfile.TemporaryDirectory(prefix="capprofile-oracle-") as directory, ThreadPoolExecutor(jobs) as pool:
        fewer = {
            name: without(command, spans, calls, Path(directory) / f"{at}.json")
            for at, (name, (spans, calls)) in enumerate(parts.items())
        }
        whole = list(pool.map(passes, [list(command)] * runs))
        less = dict(zip(fewer, pool.map(passes, fewer.values()), strict=True))
    return Judgement(tuple(parts), whole.count(False), tuple(name for name, passed in less.items() if passed))


def passes(command: Sequence[str]) -> bool:
    """Whether a `docker run` ends with 0 within the limit; a container that does not end is killed."""
    with tempfile.TemporaryDirectory(prefix="capprofile-oracle-") as directory:
        identity = Path(directory) / "id"
        words = [*command[:2], "--cidfile", str(identity), *command[2:]]
        try:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=RUN_LIMIT, check=False)
        except subprocess.TimeoutExpired:
            subprocess.run(["docker", "rm", "-f", "-v", identity.read_text()], capture_output=True, check=False)
            return False
    return done.returncode == 0


Spans = list[tuple[int, int]]


def members_of(command: Sequence[str], calls: Sequence[str]) -> dict[str, tuple[Spans, str]]:
    """The members of a recipe by name: where their flags stand in `command` before the image, and the call of one that
    is a call which the profile opens."""
    found: dict[str, tuple[Spans, str]] = {}
    at = 2
    while at < len(command) and command[at].startswith("-"):
        flag, joined, value = command[at].partition("=")
        width = 1 if joined or flag in ("--rm", "--init", "--read-only", "-i", "-t", "-d") else 2
        value = value if joined else command[at + 1] if width == 2 else ""
        if flag in MEMBERS:
            for name, call in _names(flag, value, calls):
                found.setdefault(name, ([], call))[0].append((at, at + width))
        at += width
    return found


def _names(flag: str, value: str, calls: Sequence[str]) -> Iterator[tuple[str, str]]:
    if flag == "--security-opt" and value.startswith("seccomp=") and value != "seccomp=unconfined":
        for call in calls:
            yield f"seccomp:{call}", call
    elif flag == "--device":
        yield re.sub(r"\d+$", "#", value.split(":", maxsplit=1)[0]), ""
    else:
        yield value, ""


def without(command: Sequence[str], spans: Spans, call: str, scratch: Path) -> list[str]:
    """`command` without one member; a profile without one call is written to `scratch`."""
    dropped = {at for start, end in spans for at in range(start, end)}
    if not call:
        return [word for at, word in enumerate(command) if at not in dropped]
    words = list(command)
    for start, end in spans:
        option = next(at for at in range(start, end) if "seccomp=" in command[at])
        head, _, path = words[option].partition("seccomp=")
        profile = json.loads(Path(path).read_text())
        for rule in profile["syscalls"]:
            if not rule.get("args"):
                rule["names"] = [name for name in rule["names"] if name != call]
        profile["syscalls"] = [rule for rule in profile["syscalls"] if rule["names"]]
        scratch.write_text(json.dumps(profile))
        words[option] = f"{head}seccomp={scratch}"
    return words
