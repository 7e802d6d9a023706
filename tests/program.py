"""The program itself as a test starts, watches and ends it: `capprofile run …` as a process of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pace import SLOWER

from profiler.harness.native.sandbox import DISK
from profiler.leftovers import LABEL, PREFIX, STATE, start_time
from profiler.witness import instance

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAM = (sys.executable, "-m", "profiler.cli")
SECONDS = 90.0 * SLOWER  # a deadline, far above what anything takes


def environment(**more: str) -> dict[str, str]:
    """This process's environment, in which the program is found from every directory."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **more}


def capprofile(
    *words: str | bytes, env: Mapping[str, str] | None = None, cwd: Path | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end; its output as text, with what is no UTF-8 as backslash escapes."""
    return subprocess.run(
        (*PROGRAM, *words),
        env=environment() if env is None else env,
        cwd=cwd,
        input=stdin.decode(),
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        check=False,
        timeout=SECONDS,
    )


class Running:
    """The program while it runs, standard output and error in one pipe. Leaving the context kills it if it must."""

    def __init__(self, *words: str, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            (*PROGRAM, *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment() if env is None else env,
            process_group=0,
        )
        self.pid = self._process.pid
        self.tag = f"{PREFIX}-{self.pid}-{start_time(self.pid)}"
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def until(self, words: str) -> None:
        """Wait until the program or its workload has written `words`."""
        deadline = time.monotonic() + SECONDS
        while words not in self.text:
            assert self._read(deadline), f"ended without {words!r}:\n{self.text}"

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def end(self) -> int:
        """Wait until it and all that hold its output have ended; its exit code (minus a signal)."""
        deadline = time.monotonic() + SECONDS
        while self._read(deadline):
            pass
        return self._process.wait(SECONDS)

    def _read(self, deadline: float) -> bool:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more came within {SECONDS:.0f} s:\n{self.text}"
        chunk = os.read(self._process.stdout.fileno(), 1 << 16)
        self.text += chunk.decode("utf-8", "backslashreplace")
        return bool(chunk)

    def left(self) -> list[str]:
        """What exists of what this very process made, in any place that something of ours may be."""
        found = [str(path) for base in (STATE, DISK) if base.is_dir() for path in base.iterdir()]
        root = instance.mounted()
        if root is not None:
            found += [str(path) for path in (root / "instances").iterdir()]
            found += [event.replace("_", "-") for event in instance.probes(root)]
        found += [directory for directory, _, _ in os.walk("/sys/fs/cgroup")]
        found += Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        found += containers(self.tag)
        return [name for name in found if self.tag in name]


def containers(tag: str) -> list[str]:
    """The containers of the owner `tag`: `container ID TAG STATUS`. None where there is no engine."""
    form = f'container {{{{.ID}}}} {{{{.Label "{LABEL}"}}}} {{{{.Status}}}}'
    command = ("docker", "ps", "--all", "--filter", f"label={LABEL}={tag}", "--format", form)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


def processes(mark: str) -> list[int]:
    """The processes on this host that have `mark` in their arguments, but for the program's own."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if mark in line and "profiler.cli" not in line:
            found.append(int(process.name))
    return found


def shell(script: str) -> Sequence[str]:
    """The words of a workload that is a shell script."""
    return ("--", "sh", "-c", script)
