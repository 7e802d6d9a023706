"""What an engine's runtime calls in a container between loading the seccomp filter and executing the workload.

These calls are made under the filter, so a profile must allow them, and they differ from runtime to runtime. They are
read from the recorded start of a container that ends up at the gate. Whose tasks to record is known from another start:
the runtime is made, by some forks, by a process that is there all the time (containerd), and its children are followed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from profiler.witness.events import Exec, Fork
from profiler.witness.recording import Entered, Left, Recorded

NR_PRCTL: Final = 157  # asm/unistd_64.h
NR_SECCOMP: Final = 317
PR_SET_SECCOMP: Final = 22  # linux/prctl.h
SECCOMP_MODE_FILTER: Final = 2  # linux/seccomp.h
SECCOMP_SET_MODE_FILTER: Final = 1
LOADING: Final = f"id == {NR_SECCOMP} || id == {NR_PRCTL}"
"""Which ends of system calls `after_filter` asks for."""


def origin(forks: Iterable[Recorded], pid: int) -> int:
    """The task from which `pid` descends and whose own birth is not among `forks`: it was there before."""
    parents = {event.child: event.pid for event in forks if isinstance(event, Fork)}
    seen = {pid}
    while (parent := parents.get(pid)) is not None and parent not in seen:
        seen.add(parent)
        pid = parent
    return pid


def threads_of(task: int) -> tuple[int, ...]:
    """Every thread of the process that the thread `task` belongs to; empty when it is gone (proc(5))."""
    try:
        return tuple(int(path.name) for path in Path(f"/proc/{task}/task").iterdir())
    except OSError:
        return ()


def after_filter(events: Iterable[Recorded], init: int, gate: int) -> frozenset[int] | None:
    """The numbers of the calls that are made under the filter by the process `init` and all that it makes, up to the
    gate's own; None where no filter was seen to be loaded there, or no gate to be executed after that.

    `events` are in the order of time. `init` and `gate` differ where the engine puts an init of its own in front of
    the workload: that is confined too, to its end.
    """
    tree, confined = {init}, set[int]()
    loading: set[int] = set()
    numbers: set[int] = set()
    reached = False
    for event in events:
        if isinstance(event, Entered):
            if event.pid in confined:
                numbers.add(event.number)
            elif event.pid in tree and _loads(event):
                loading.add(event.pid)
        elif isinstance(event, Left):
            if event.pid in loading:
                loading.discard(event.pid)
                if event.result >= 0:
                    confined |= tree  # its threads are at least with SECCOMP_FILTER_FLAG_TSYNC
        elif isinstance(event, Fork):
            if event.pid in tree:
                tree.add(event.child)
            if event.pid in confined:
                confined.add(event.child)
        elif isinstance(event, Exec) and event.pid == gate and event.pid in confined:
            confined.discard(gate)
            reached = True
    return frozenset(numbers) if reached else None


def _loads(event: Entered) -> bool:
    """Whether this call would load a filter; libseccomp also asks what the kernel knows, by calls that fail."""
    operation, mode, _ = event.args
    if event.number == NR_SECCOMP:
        return operation == SECCOMP_SET_MODE_FILTER
    return event.number == NR_PRCTL and operation == PR_SET_SECCOMP and mode == SECCOMP_MODE_FILTER
