"""A tracefs instance of our own: made, written and removed. Nothing here knows what its events mean.

Files of tracefs are opened for appending, never truncated: truncating `set_event_pid` drops the filter and traces every
task of the host until the next write (kernel/trace/trace_events.c, `ftrace_event_set_open`), truncating `trigger`
or `kprobe_events` removes everybody's.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from profiler import leftovers
from profiler.errors import HostError
from profiler.kernel import namespaces

TRACEFS = Path("/sys/kernel/tracing")
DEBUGFS_TRACEFS = Path("/sys/kernel/debug/tracing")
REMOVAL_SECONDS = 5.0
SUBBUFFER_KIB = 64  # fewer, larger reads
_STAT = re.compile(r"^(overrun|commit overrun|dropped events): (\d+)$", re.MULTILINE)


def write(path: Path, text: str) -> None:
    """Append `text` to a file of tracefs in one write. OSError as the kernel answers."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def mounted() -> Path | None:
    """Where tracefs is mounted, None where it is not."""
    return next((root for root in (TRACEFS, DEBUGFS_TRACEFS) if (root / "instances").is_dir()), None)


def tracefs() -> Path:
    """Where tracefs is; it is mounted at its usual place when it is nowhere. HostError when that cannot be done."""
    root = mounted()
    if root is not None:
        return root
    if not TRACEFS.is_dir():
        raise HostError(
            "this kernel has no tracefs (no /sys/kernel/tracing)",
            "capprofile sees capability checks through it: use a kernel with CONFIG_EVENT_TRACING",
        )
    try:
        namespaces.mount(Path("tracefs"), TRACEFS, "tracefs")
    except OSError as error:
        raise HostError(
            f"tracefs cannot be mounted at {TRACEFS}: {error.strerror or error}",
            "run as root outside a container, or mount it: mount -t tracefs nodev /sys/kernel/tracing",
        ) from error
    return TRACEFS


def own_name(root: Path) -> str:
    """A name for one more instance of this process: its tag, with a number where there is one already."""
    tag = leftovers.owner_tag()
    taken = {path.name for path in (root / "instances").glob(f"{tag}*")}
    return next(
        name for number in itertools.count(1) if (name := tag if number == 1 else f"{tag}-{number}") not in taken
    )


@contextlib.contextmanager
def setting_up(close: Callable[[], None]) -> Iterator[None]:
    """What sets an instance up, undone by `close` where it fails. HostError in place of the kernel's OSError."""
    try:
        yield
    except BaseException as error:
        close()
        if isinstance(error, OSError):
            raise HostError(
                f"the trace instance cannot be set up: {error}", "run as root, with kernel lockdown off"
            ) from error
        raise


class Instance:
    """`instances/NAME` below `root`. HostError when the kernel refuses to make it (lockdown, no privilege)."""

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / "instances" / name
        try:
            self.path.mkdir()
        except OSError as error:
            raise HostError(
                f"the kernel refuses a trace instance: {error.strerror or error}",
                "run as root with CAP_SYS_ADMIN, outside a container and with kernel lockdown off",
            ) from error

    def prepare(self, buffer_kib: int) -> None:
        """Not recording, on the clock of time.monotonic_ns(), with `buffer_kib` a processor, and whoever is followed
        with all that it makes. OSError as the kernel answers."""
        self.write("tracing_on", "0")
        self.write("trace_clock", "mono")
        with contextlib.suppress(OSError):  # kernels before 6.8 have pages of 4 KiB only
            self.write("buffer_subbuf_size_kb", str(SUBBUFFER_KIB))
        self.write("buffer_size_kb", str(buffer_kib))
        self.write("options/event-fork", "1")

    def pipes(self) -> Iterator[int]:
        """Opens each processor's pages to be read without waiting, in the order of their numbers; yours to close."""
        for cpu in sorted((self.path / "per_cpu").glob("cpu*"), key=lambda path: int(path.name[3:])):
            yield os.open(cpu / "trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def write(self, file: str, text: str) -> None:
        """Append `text` to one of the instance's files. OSError as the kernel answers."""
        write(self.path / file, text)

    def clear(self, file: str) -> None:
        """Empty one of the instance's files (O_TRUNC). OSError as the kernel answers."""
        os.close(os.open(self.path / file, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC))

    def read(self, file: str) -> str:
        """One of the instance's files as text."""
        return (self.path / file).read_text(encoding="utf-8", errors="replace")

    def event(self, name: str) -> bool:
        """Whether the event (`system/name`) exists."""
        return (self.path / "events" / name / "format").exists()

    def lost(self) -> dict[str, int]:
        """What the ring buffer could not keep, by the kernel's name for it (per_cpu/*/stats); empty: nothing."""
        found: dict[str, int] = {}
        for stats in (self.path / "per_cpu").glob("cpu*/stats"):
            for name, count in _STAT.findall(stats.read_text(encoding="utf-8")):
                if int(count):
                    found[name] = found.get(name, 0) + int(count)
        return found

    def remove(self) -> None:
        """Stop recording and remove the instance with its buffers, events' triggers included."""
        remove(self.path)


def remove(path: Path) -> None:
    """Remove an instance's directory; retried for `REMOVAL_SECONDS` while a reader still holds it, then OSError."""
    deadline = time.monotonic() + REMOVAL_SECONDS
    try:
        write(path / "tracing_on", "0")
        write(path / "events/enable", "0")
    except FileNotFoundError:
        return
    while True:
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def probe_group(tag: str) -> str:
    """The kprobe group of an owner's tag: groups are C identifiers (kernel/trace/trace_probe.c)."""
    return tag.replace("-", "_")


def remove_probes(root: Path, group: str) -> None:
    """Remove every kprobe event of `group`; none is not an error. Kprobe events belong to no instance."""
    for event in probes(root):
        if event.partition("/")[0] == group:
            write(root / "kprobe_events", f"-:{event}\n")


def probes(root: Path) -> list[str]:
    """The host's kprobe events, each `group/event`; empty where the kernel has no kprobes."""
    try:
        lines = (root / "kprobe_events").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.split()[0].partition(":")[2] for line in lines if ":" in line]


def clean_leftovers(root: Path) -> list[str]:
    """Remove the instances and kprobe events whose owner is gone; their names."""
    removed: list[str] = []
    for path in sorted((root / "instances").iterdir()):
        if leftovers.is_leftover(path.name):
            remove(path)
            removed.append(path.name)
    for group in sorted({event.partition("/")[0] for event in probes(root)}):
        if leftovers.is_leftover(group.replace("_", "-")):
            remove_probes(root, group)
            removed.append(group)
    return removed
