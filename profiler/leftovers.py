"""Names what outlives a process of ours after its owner, and tells whether that owner still lives.

A tag is `capprofile-<pid>-<start time in clock ticks>`; containers carry it as the label `capprofile.owner`, tracefs
instances and state directories as their name. The rooms that make such things offer their own `clean`; this module
knows only the tag.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

PREFIX = "capprofile"
LABEL = "capprofile.owner"
STATE = Path("/run/capprofile")
DISK = Path("/var/lib/capprofile")  # for what may be large: /run is mostly in memory
_TAG = re.compile(rf"^{PREFIX}-(\d+)-(\d+)")


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (clock ticks after boot), None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def owner_tag() -> str:
    """The tag of this very process."""
    return f"{PREFIX}-{os.getpid()}-{start_time(os.getpid())}"


def is_leftover(name: str) -> bool:
    """Whether `name` begins with a tag of ours whose process is gone. A name without a tag is not ours: False."""
    match = _TAG.match(name)
    if match is None:
        return False
    return start_time(int(match[1])) != int(match[2])
