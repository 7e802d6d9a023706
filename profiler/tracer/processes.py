"""Who a task is, over time: fed with forks, execs and ends in the order of time, and with what the listener knows.

Tasks are threads, numbered as the kernel does in the first pid namespace. A task that nothing is known of is looked up
in /proc while it lives.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from profiler.model import Process

CHAIN_LENGTH = 16


@dataclass(slots=True)
class _Task:
    exe: str
    argv: tuple[str, ...]
    uid: int
    chain: tuple[str, ...]
    since: int  # ns: what is known is at least this new
    known: Process | None = None


def from_proc(pid: int) -> Process | None:
    """What /proc says of a living task (proc_pid_exe(5), proc_pid_cmdline(5), proc_pid_status(5)); None without it.

    `uid` is the effective one. A program that is no longer there is named without the kernel's ` (deleted)`.
    """
    root = f"/proc/{pid}"
    try:
        # asked at every exec, mostly of a process that is gone already: a Path costs more than the answer
        exe = os.readlink(f"{root}/exe").removesuffix(" (deleted)")  # noqa: PTH115
        argv = Path(root, "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        status = Path(root, "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    uid = next((int(line.split()[2]) for line in status.splitlines() if line.startswith("Uid:")), -1)
    return Process(pid, exe, tuple(os.fsdecode(word) for word in argv), uid)


def _parent(pid: int) -> int | None:
    """The parent's pid of a living task, None without it."""
    try:
        status = (Path("/proc") / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:")), None)


class Processes:
    """The process table of one workload. `gate` is its first task: no chain of parents goes beyond it.

    `count` is how many processes there were, threads not counted where the kernel tells them apart. Not thread-safe.
    """

    def __init__(self, gate: int | None = None) -> None:
        self._gate = gate
        self._tasks: dict[int, _Task] = {}
        self.count = 1

    def forked(self, time_ns: int, parent: int, child: int, *, thread: bool) -> None:
        """`parent` made `child`, which is the same program until it executes another. Resets a reused pid."""
        if not thread:
            self.count += 1
        of = self._task(parent)
        chain = of.chain if thread else (of.exe, *of.chain)[:CHAIN_LENGTH]
        known = self._tasks.get(child)
        if known is not None and known.since > time_ns:  # the listener was ahead of the witness
            known.chain = known.chain or chain
            return
        self._tasks[child] = _Task(of.exe, of.argv, of.uid, chain, time_ns)

    def executed(self, time_ns: int, pid: int, old_pid: int, filename: str, seen: Process | None) -> None:
        """`pid` executes another program; `seen` is what /proc said of it soon after, None when it was gone by then."""
        task = self._tasks.pop(old_pid, None) if old_pid != pid else self._tasks.get(pid)
        before = self._tasks.get(pid)
        chain = (task or before or _Task("", (), -1, (), 0)).chain
        if before is not None and before.since > time_ns:  # the listener was ahead of the witness
            before.chain = before.chain or chain
        elif seen is None:
            self._tasks[pid] = _Task(filename, (), task.uid if task else -1, chain, time_ns)
        else:
            self._tasks[pid] = _Task(seen.exe, seen.argv, seen.uid, chain, time_ns)

    def ended(self, time_ns: int, pid: int) -> None:
        """The task is gone; a newer one of the same pid stays."""
        task = self._tasks.get(pid)
        if task is not None and task.since <= time_ns:
            del self._tasks[pid]

    def tell(self, time_ns: int, pid: int, process: Process) -> Process:
        """Note what the listener read from the stopped task, and complete it with the chain of its parents."""
        task = self._tasks.get(pid)
        if task is None:
            self._tasks[pid] = _Task(process.exe, process.argv, process.uid, process.chain, time_ns)
            return process
        if process.uid != task.uid or process.exe != task.exe or process.argv != task.argv:
            task.exe, task.argv, task.uid, task.known = process.exe, process.argv, process.uid, None
        elif task.known is not None and task.known.real_uid != process.real_uid:
            task.known = None
        task.since = max(task.since, time_ns)
        if process.chain or not task.chain:
            return process
        if task.known is None:
            task.known = dataclasses.replace(process, chain=task.chain)
        return task.known

    def of(self, pid: int) -> Process:
        """Who `pid` is now: from what was fed, else from /proc, else with an empty name."""
        task = self._task(pid)
        if task.known is None:
            task.known = Process(pid, task.exe, task.argv, task.uid, task.chain)
        return task.known

    def _task(self, pid: int) -> _Task:
        task = self._tasks.get(pid)
        if task is None:
            found = from_proc(pid) or Process(pid, "")
            task = self._tasks[pid] = _Task(found.exe, found.argv, found.uid, self._ancestors(pid), 0)
        return task

    def _ancestors(self, pid: int) -> tuple[str, ...]:
        chain: list[str] = []
        while pid != self._gate and len(chain) < CHAIN_LENGTH:
            parent = _parent(pid)
            if not parent or self._gate is None:
                break
            known = self._tasks.get(parent)
            if known is not None:
                return (*chain, known.exe, *known.chain)[:CHAIN_LENGTH]
            found = from_proc(parent)
            if found is None:
                break
            chain.append(found.exe)
            pid = parent
        return tuple(chain) if pid == self._gate else ()
