"""Who makes a call: the program, arguments, user and parents of a living thread, remembered for as long as they hold.

On the path of every notified call. What is remembered hangs on an open /proc/PID directory, which a later process of
the same pid does not answer for (proc_pid_lookup binds it to the task), and on the program and its arguments, which an
exec changes.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from profiler.model import Process

SIZE: Final = 200  # remembered at a time; each is two descriptors
CHAIN_LENGTH: Final = 16
_ARGV_SHOWN = 4096  # bytes of the command line
_CREDENTIAL_CALLS = frozenset({"setuid", "setreuid", "setresuid", "setfsuid", "setuid32", "setreuid32", "setresuid32"})


class _Known:
    __slots__ = ("argv", "cmdline", "directory", "exe", "process", "stale")

    def __init__(self, directory: int, cmdline: int, exe: str, argv: bytes, process: Process) -> None:
        self.directory = directory
        self.cmdline = cmdline
        self.exe = exe
        self.argv = argv
        self.process = process
        self.stale = False


class Callers:
    """Looks threads up in /proc. `anchor` is the workload's first process: chains of parents end with it.

    Not thread-safe. Close it to give the descriptors back.
    """

    def __init__(self, anchor: int, size: int = SIZE) -> None:
        self._anchor = anchor
        self._size = size
        self._known: dict[int, _Known] = {}

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, pid: int) -> Process:
        """Who the living thread `pid` is now; with an empty program when it is gone."""
        known = self._known.get(pid)
        if known is not None:
            try:
                argv, exe = _identity(known.directory, known.cmdline)
                if argv == known.argv and exe == known.exe and not known.stale:
                    return known.process
            except OSError:
                self._forget(pid)
        return self._look_up(pid) or Process(pid, "")

    def remembered(self, pid: int) -> Process | None:
        """What was last known of `pid`, be it gone or not; None when nothing is remembered."""
        known = self._known.get(pid)
        return None if known is None else known.process

    def after(self, pid: int, call: str) -> None:
        """Note that `pid` goes on with `call`: its user may be another afterwards."""
        known = self._known.get(pid)
        if known is not None and call in _CREDENTIAL_CALLS:
            known.stale = True

    def _look_up(self, pid: int, depth: int = 0) -> Process | None:
        self._forget(pid)
        try:
            directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        cmdline = -1
        try:
            cmdline = os.open("cmdline", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
            argv, exe = _identity(directory, cmdline)
            parent, uid, real_uid = _parent_and_users(directory)
        except OSError:
            os.close(directory)
            if cmdline >= 0:
                os.close(cmdline)
            return None
        words = tuple(os.fsdecode(word) for word in argv.rstrip(b"\0").split(b"\0"))
        # A program on a mount that is detached by now (engines run a copy of themselves) has no path but "/".
        shown = words[0] if exe == "/" else exe
        process = Process(pid, shown, words, uid, self._chain(pid, parent, depth), real_uid)
        self._known[pid] = _Known(directory, cmdline, exe, argv, process)
        if len(self._known) > self._size:
            self._forget(next(iter(self._known)))
        return process

    def _chain(self, pid: int, parent: int, depth: int) -> tuple[str, ...]:
        if pid == self._anchor or parent == 0 or depth >= CHAIN_LENGTH:
            return ()
        known = self._known.get(parent)
        of = known.process if known is not None else None
        if known is not None:
            try:
                if _identity(known.directory, known.cmdline) != (known.argv, known.exe):
                    of = None
            except OSError:
                of = None
        of = of or self._look_up(parent, depth + 1)
        return () if of is None else (of.exe, *of.chain)[:CHAIN_LENGTH]

    def _forget(self, pid: int) -> None:
        known = self._known.pop(pid, None)
        if known is not None:
            os.close(known.directory)
            os.close(known.cmdline)

    def close(self) -> None:
        """Close what is open. Idempotent."""
        for pid in list(self._known):
            self._forget(pid)


def _identity(directory: int, cmdline: int) -> tuple[bytes, str]:
    """The command line and the program (without the kernel's ` (deleted)`) of an open /proc/PID. Raises OSError.

    `cmdline` is that file in it, which shows the memory of now, not of when it was opened (proc_pid_cmdline_read).
    """
    argv = os.pread(cmdline, _ARGV_SHOWN, 0)
    exe = ""
    with contextlib.suppress(FileNotFoundError):  # a kernel thread, or a zombie
        exe = os.readlink("exe", dir_fd=directory).removesuffix(" (deleted)")
    return argv, exe


def _parent_and_users(directory: int) -> tuple[int, int, int]:
    """PPid, the effective uid and the real one if it is another (else -1) of an open /proc/PID (proc_pid_status(5)).

    Raises OSError.
    """
    fd = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = os.read(fd, 4096)
    finally:
        os.close(fd)
    parent, uid, real_uid = 0, -1, -1
    for line in status.splitlines():
        if line.startswith(b"PPid:"):
            parent = int(line.split()[1])
        elif line.startswith(b"Uid:"):
            real, uid = (int(word) for word in line.split()[1:3])
            real_uid = real if real != uid else -1
    return parent, uid, real_uid
