"""What every test may rely on: who may run here, how to wait, and that nothing of ours is left at the end.

Tests marked `kernel` need root; tests marked `engine` need root and a Docker engine. Without these they are skipped,
with the reason. CAPPROFILE_REQUIRE_ENGINE=1 (set by `make test`, which has started an engine) turns the missing engine
into failures, so that a gate never passes by having run nothing.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `import images` from every test directory

from pace import SLOWER

from profiler import leftovers

# A signal that is ignored stays so in all that is started from here (execve(2)): a suite started in the background, or
# with nohup, would find every program deaf to Ctrl-C and hang-up.
for _number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    signal.signal(_number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRE_ENGINE = "CAPPROFILE_REQUIRE_ENGINE"
TRACEFS = (Path("/sys/kernel/tracing/instances"), Path("/sys/kernel/debug/tracing/instances"))
T = TypeVar("T")


@functools.cache
def engine_answer() -> str:
    """Empty when a Docker engine answers, else why it does not."""
    try:
        done = subprocess.run(["docker", "info"], check=False, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return "docker is not installed"
    except subprocess.TimeoutExpired:
        return "docker info did not answer within 30 s"
    return "" if done.returncode == 0 else (done.stderr.strip() or "docker info failed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here, with the reason."""
    root = os.geteuid() == 0
    for item in items:
        if SLOWER != 1 and (limit := item.get_closest_marker("timeout")) is not None:
            item.add_marker(pytest.mark.timeout(limit.args[0] * SLOWER), append=False)
        if "kernel" in item.keywords and not root:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if "engine" in item.keywords and not root:
            item.add_marker(pytest.mark.skip(reason="needs root and a Docker engine"))
        elif "engine" in item.keywords and engine_answer() and os.environ.get(REQUIRE_ENGINE) != "1":
            item.add_marker(pytest.mark.skip(reason=f"needs a Docker engine (make engine): {engine_answer()}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Under `make test` a missing engine is a failure."""
    if "engine" in item.keywords and engine_answer():
        pytest.fail(f"{REQUIRE_ENGINE}=1, but no Docker engine answers: {engine_answer()}", pytrace=False)


def wait_until_true(condition: Callable[[], T], deadline: float = 10.0) -> T:
    """Ask `condition` until its answer is true, and return that answer; fail after `deadline` seconds.

    Where everything is slower (`pace`), so much later.
    """
    end = time.monotonic() + deadline * SLOWER
    while not (answer := condition()):
        if time.monotonic() > end:
            pytest.fail(f"{getattr(condition, '__name__', condition)} did not come true within {deadline} s")
        time.sleep(0.005)
    return answer


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """`wait_until(condition, deadline=10.0)` returns the first true answer of `condition`; fails after `deadline` s."""
    return wait_until_true


@pytest.fixture
def node_path(tmp_path: Path) -> Iterator[Path]:
    """A new directory in which a device node can be opened: /tmp is mounted nodev on many hosts."""
    for place in (tmp_path, Path("/var/tmp")):
        if not os.statvfs(place).f_flag & os.ST_NODEV:
            with tempfile.TemporaryDirectory(dir=place) as directory:
                yield Path(directory)
            return
    pytest.skip("every temporary directory here is mounted nodev")


def ours(pids: set[int]) -> list[str]:
    """What exists here by the names that `profiler.leftovers` defines and that a process of `pids`, or none, owns."""
    found = [f"tracefs instance {path}" for directory in TRACEFS for path in _glob(directory, f"{leftovers.PREFIX}-*")]
    found += [f"state directory {path}" for path in _glob(leftovers.STATE, "*")]
    if not engine_answer():
        listing = subprocess.run(
            ["docker", "ps", "--all", "--filter", f"label={leftovers.LABEL}", "--format",
             f'container {{{{.ID}}}} {{{{.Label "{leftovers.LABEL}"}}}}'],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        found += listing.stdout.splitlines()
    return [name for name in found if _is_abandoned(name, pids)]


def _glob(directory: Path, pattern: str) -> list[Path]:
    try:
        return sorted(directory.glob(pattern))
    except OSError:
        return []


def _is_abandoned(name: str, pids: set[int]) -> bool:
    """Whether what `name` ends with is a tag whose process is gone, or one of `pids` (a test's own, at its end)."""
    tag = name.replace("/", " ").split()[-1]
    return leftovers.is_leftover(tag) or any(tag.startswith(f"{leftovers.PREFIX}-{pid}-") for pid in pids)


@pytest.fixture(scope="session", autouse=True)
def nothing_of_ours_remains() -> Iterator[None]:
    """At the end no container, tracefs instance or state directory of ours may be left, unless it was there before.

    What belongs to a process that still lives is another session's affair.
    """
    if os.geteuid() != 0:
        yield
        return
    before = set(ours(set()))
    yield
    end = time.monotonic() + 5.0  # an engine removes a container a little after its client has ended
    while (left := [name for name in ours({os.getpid()}) if name not in before]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left, "left behind by the tests: " + "; ".join(left)
