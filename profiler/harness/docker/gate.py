"""Puts the gate in front of a container's workload, and finds its process on this host.

The gate is bind-mounted read-only and made the entrypoint: no image has to hold anything, and the empty file that the
engine makes as the mount's target lies in the container's own layer only.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from profiler.errors import HostError
from profiler.harness.docker.engine import Engine, Refused
from profiler.kernel.gate import gate_elf, is_at_gate
from profiler.leftovers import DISK, STATE, owner_tag

GATE = "/.capprofile-gate"  # as the container sees it
STATE_PLACES = (STATE, DISK)
"""Where state directories may be. /run is mounted noexec on some hosts, and a bind mount keeps that."""

_START_SECONDS = 20.0
_LOOK_SECONDS = 0.005  # between two looks: the engine tells nobody when runc has executed the entrypoint


def make_state_directory() -> Path:
    """A new directory below a place of `STATE_PLACES` and our tag, on a mount that programs can be executed from.

    HostError when there is none.
    """
    reason = "both are mounted noexec"
    for place in STATE_PLACES:
        try:
            (place / owner_tag()).mkdir(mode=0o755, parents=True, exist_ok=True)
            if not os.statvfs(place).f_flag & os.ST_NOEXEC:
                return Path(tempfile.mkdtemp(prefix="docker-", dir=place / owner_tag()))
        except OSError as error:
            reason = f"{error.strerror}: {place}"
    places = " nor ".join(map(str, STATE_PLACES))
    raise HostError(f"no state directory can be made in {places}: {reason}", "make one of them writable for root")


def remove_state_directory(directory: Path) -> None:
    """Remove what `make_state_directory` made, and its parents as far as they are empty. Quiet when it is gone."""
    for file in directory.glob("*"):
        file.unlink(missing_ok=True)
    for place in STATE_PLACES:
        for path in (directory, place / owner_tag(), place):
            try:
                path.rmdir()
            except OSError:  # not empty (another sandbox of this process), or not there
                continue


def write_gate(directory: Path) -> Path:
    """The gate as a program in `directory`."""
    gate = directory / "gate"
    gate.write_bytes(gate_elf())
    gate.chmod(0o755)
    return gate


def gate_flags(gate: Path) -> tuple[str, ...]:
    """The flags of `docker create` that put `gate` in front."""
    return ("--mount", f"type=bind,source={gate},target={GATE},readonly", "--entrypoint", GATE)


@contextmanager
def throwaway(engine: Engine, words: tuple[str, ...]) -> Iterator[str]:
    """A container that is created from these words of `docker create`, and removed with the block. Raises Refused."""
    container = engine.create(words)
    try:
        yield container
    finally:
        engine.remove(container)


def await_gate(engine: Engine, container: str, child: subprocess.Popen[bytes] | None = None) -> tuple[int, int]:
    """Wait until a container that was started is at its gate: the pids of its first process and of the gate.

    They differ with `--init`. `child` is the client that starts it, if one does. Raises Refused when it does not start,
    HostError when its processes are not on this host (a remote engine, or one in a virtual machine).
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        ended = child is not None and child.poll() is not None
        state = engine.inspect(container)["State"]
        init = int(state.get("Pid") or 0)
        if state["Running"] and init:
            for pid in (init, *_children(init)):
                if is_at_gate(pid):
                    return init, pid
            if not Path(f"/proc/{init}").exists() and engine.inspect(container)["State"].get("Pid") == init:
                break
        elif state.get("Error") or state["Status"] in ("exited", "dead") or ended:
            code = state.get("ExitCode")
            raise Refused(" ".join(str(state.get("Error") or f"the container ended at once with {code}").split()))
        select.select([], [], [], _LOOK_SECONDS)
    raise elsewhere()


def environment_of(pid: int) -> tuple[str, ...]:
    """The environment that `pid` was executed with (proc_pid_environ(5)), bytes that are no UTF-8 included."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError as error:
        raise HostError("the container ended at its gate", "another program stopped it: run again") from error
    return tuple(os.fsdecode(entry) for entry in content.split(b"\0") if entry)


def elsewhere() -> HostError:
    """The error for an engine that does not share this host's processes and files."""
    return HostError(
        "the engine runs containers, but not as processes of this host (a remote engine, or Docker Desktop)",
        "run capprofile where the engine itself runs, as root and outside any container",
    )


def _children(pid: int) -> list[int]:
    """The child processes of `pid` (proc_pid_task(5); without CONFIG_PROC_CHILDREN, every process's parent)."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        return [int(word) for word in words]
    except OSError:
        return [child for child in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(child) == pid]  # noqa: PTH208


def _parent(pid: int) -> int:
    """Field 4 of proc_pid_stat(5); 0 when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])
