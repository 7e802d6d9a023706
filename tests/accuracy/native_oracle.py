"""An oracle of the embedded sandbox's recipes that shares no code with it: util-linux runs the command again.

Called by the accuracy runner; not collected by pytest. Needs root, as the sandbox does.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).with_name("native_oracle.sh")
COMMON = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)}  # null zero full random urandom tty ptmx
ALWAYS = ("c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm",
          "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm")  # fmt: skip
DEVICES = Path("/sys/fs/cgroup/devices")
CLASS = re.compile(r"([bc]) (\d+|\*):(\d+|\*) ([rwm]+)")


def passes(argv: list[str], members: frozenset[str], timeout: float, cwd: Path) -> bool:
    """Whether `argv` exits with 0 in `cwd`, within `timeout` seconds, with exactly `members` (a recipe's labels)."""
    capabilities = sorted(m.lower() for m in members if re.fullmatch(r"[A-Z_]+", m))
    bounding = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    nodes, rules = _devices(members)
    with tempfile.TemporaryDirectory(prefix="oracle-", dir="/var/tmp") as store:
        listing = Path(store, "nodes")
        listing.write_text("".join(f"{line}\n" for line in nodes))
        group = _group(Path(store).name, rules)
        words = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child",
                 "setsid", "--wait", "bash", str(SCRIPT), store, bounding, str(listing), *argv]  # fmt: skip

        def join() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text("0")

        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                preexec_fn=join,
                check=False,
                cwd=cwd,
            )
            code = done.returncode
            if os.environ.get("ORACLE_SHOW"):
                print(f"    {sorted(members)}: {code} {(done.stderr or done.stdout)[-300:]!r}")
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            if group is not None:
                _remove(group)
    return code == 0


def _remove(group: Path) -> None:
    """What `unshare --kill-child` kills when it is killed itself is gone a little later."""
    until = time.monotonic() + 10
    while True:
        try:
            return group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _devices(members: frozenset[str]) -> tuple[list[str], list[str]]:
    """The lines of the node list, and the device cgroup's rules."""
    named = {path: access for m in members if m.startswith("/dev/") for path, _, access in [m.rpartition(":")]}
    pools = [found for m in members if (found := CLASS.fullmatch(m))]
    lines, rules = [], [pool[0] for pool in pools]
    for directory, _, files in os.walk("/dev"):
        for name in files:
            path = f"{directory}/{name}"
            status = os.lstat(path)
            kind = "b" if stat.S_ISBLK(status.st_mode) else "c" if stat.S_ISCHR(status.st_mode) else None
            if kind is None or path.startswith(("/dev/pts/", "/dev/ptmx", "/dev/console")):
                continue
            major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
            pooled = any(p[1] == kind and p[2] in ("*", str(major)) and p[3] in ("*", str(minor)) for p in pools)
            if path in named:
                rules.append(f"{kind} {major}:{minor} {named[path]}")
            elif not pooled and (kind != "c" or (major, minor) not in COMMON):
                continue
            lines.append(f"{path} {kind} {major} {minor} {status.st_mode & 0o7777:o} {status.st_uid} {status.st_gid}")
    return lines, rules


def _group(name: str, rules: list[str]) -> Path | None:
    """A version 1 device group with exactly `rules`; None where there is no such hierarchy."""
    if not (DEVICES / "devices.list").exists() and not (DEVICES / "cgroup.procs").exists():
        return None
    group = DEVICES / name
    group.mkdir()
    (group / "devices.deny").write_text("a")
    for rule in (*ALWAYS, *rules):
        (group / "devices.allow").write_text(rule)
    return group
