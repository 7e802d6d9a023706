"""What a process does with a signal: catch it, ignore it, or what the kernel does by default (proc_pid_status(5))."""

from __future__ import annotations

from pathlib import Path


def caught_and_ignored(pid: int) -> tuple[frozenset[int], frozenset[int]]:
    """The signals that `pid` has a handler for, and those that it ignores; both empty when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset(), frozenset()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return _signals(fields.get("SigCgt", "0")), _signals(fields.get("SigIgn", "0"))


def _signals(mask: str) -> frozenset[int]:
    """The signals of a hexadecimal mask, whose lowest bit is signal 1."""
    bits = int(mask, 16)
    return frozenset(number for number in range(1, 65) if bits >> number - 1 & 1)
