"""What the embedded sandbox's parent tells its helper, and how the two talk. Light: the helper imports it at every run.

The specification travels as JSON in a memfd; then the two exchange short JSON messages on a SOCK_SEQPACKET pair:
helper to parent `held` (with a pidfd of the workload), `ended`, `failed`; parent to helper `stop`, `kill`. The end of
the pair is a message too: when the parent is gone, in whatever way, the sandbox ends.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

GRACE = 10.0  # seconds between SIGTERM and SIGKILL, as `docker stop`
HELD, ENDED, FAILED, STOP, KILL = "held", "ended", "failed", "stop", "kill"


@dataclass(frozen=True)
class Node:
    """A device node as the host has it: `kind` is `b` or `c`; `mode` the permission bits."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class Spec:
    """One run. `stores` are directories, best first, below which the run's private files may lie."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    capabilities: tuple[str, ...]  # the bounding, permitted and effective sets
    nodes: tuple[Node, ...]  # below /dev, beside the standard ones
    links: tuple[tuple[str, str], ...]  # symbolic links below /dev: path, target
    device_rules: tuple[str, ...] | None  # as devices.allow takes them; None: no limit
    private_network: bool
    at_gate: bool  # execute the gate in place of argv
    own_session: bool  # leave the terminal's session
    foreground: bool  # make the workload the terminal's foreground group
    name: str  # unique on this host; begins with the owner's tag
    stores: tuple[str, ...]
    hidden: tuple[str, ...]  # host paths that the sandbox must not see
    expected: tuple[str, ...] = ()  # files whose digests the last message shall tell

    def to_fd(self) -> int:
        """A new memfd (close-on-exec, read from its start) that holds this specification."""
        fd = os.memfd_create("capprofile-spec")
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(json.dumps(asdict(self)).encode())
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    @classmethod
    def from_fd(cls, fd: int) -> Spec:
        """The specification that `to_fd` wrote; closes `fd`."""
        with os.fdopen(fd, "rb") as file:
            raw = json.load(file)
        raw["nodes"] = tuple(Node(**node) for node in raw["nodes"])
        for key in ("argv", "capabilities", "stores", "hidden", "expected"):
            raw[key] = tuple(raw[key])
        for key in ("env", "links"):
            raw[key] = tuple((first, second) for first, second in raw[key])
        if raw["device_rules"] is not None:
            raw["device_rules"] = tuple(raw["device_rules"])
        return cls(**raw)


def encode(kind: str, **facts: object) -> bytes:
    """A message: its kind and what belongs to it."""
    return json.dumps({"kind": kind, **facts}).encode()


def decode(message: bytes) -> dict[str, object]:
    """The message that `encode` made."""
    decoded = json.loads(message)
    assert isinstance(decoded, dict)
    return decoded
