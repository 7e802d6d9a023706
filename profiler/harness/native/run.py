"""One run of the embedded sandbox as its parent sees it: the helper process, its messages, output and end."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from profiler.errors import HostError, UsageError
from profiler.harness.interface import Caught
from profiler.harness.loops import remove_layers
from profiler.harness.native import cgroups
from profiler.harness.native.spec import ENDED, FAILED, GRACE, HELD, KILL, STOP, Spec, decode, encode
from profiler.harness.service import Service
from profiler.harness.stream import Stream
from profiler.kernel.mountinfo import mounts_of
from profiler.model import Outcome

KILLED = 128 + signal.SIGKILL
_HELPER = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from profiler.harness.native.child import main; "
    "sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))"
)
_PACKAGES = str(Path(__file__).resolve().parents[3])
_MESSAGE = 1 << 16  # bytes
_LATE = 5.0  # seconds that the helper has, after a kill, before it is killed itself


class NativeRun:
    """Implements `TracedRun` on a helper that holds the workload at its gate."""

    def __init__(self, helper: Helper, caught: Caught) -> None:
        """Take over `helper`, which holds `caught`."""
        self._helper = helper
        self._caught = caught

    @property
    def caught(self) -> Caught:
        """The held process, as this host numbers it."""
        return self._caught

    @property
    def running(self) -> Alone:
        """What can be asked of the run while it goes on."""
        return Alone()

    def wait(self, deadline: float | None = None) -> Outcome:
        """Wait for the workload's main process to end; everything else of it ends then. See `TracedRun.wait`."""
        timed_out = not self._helper.wait(deadline)
        if timed_out:
            self.stop()
            self._helper.wait(time.monotonic() + GRACE + _LATE)
        self._helper.close()
        return Outcome(self._helper.exit_code, self._helper.seconds, timed_out, files=self._helper.files)

    def stop(self) -> None:
        """SIGTERM to the main process, and after ten seconds SIGKILL to all. Safe from any thread."""
        self._helper.say(STOP)

    def lost(self) -> bool:
        """Never: without its helper the sandbox ends by itself."""
        return False

    def close(self) -> None:
        """Kill what still runs and remove it. Idempotent."""
        self._helper.close()


class Alone:
    """Implements `Running` where there is no engine: nobody makes health checks or lets a command in."""

    moved = ()

    def health(self) -> str:
        """None is made."""
        return ""

    def inside(self, command: str) -> Outcome:
        """There is no way in."""
        raise UsageError(
            "the embedded sandbox runs nothing beside its workload", "use --check, or profile a docker run"
        )


class Helper:
    """The helper process of one run, seen from here. `workload` is the main process's pid on this host."""

    def __init__(self, spec: Spec, stdin: int, output: int | None) -> None:
        """Start the helper; `output` is None (ours), subprocess.PIPE or subprocess.DEVNULL. Raises HostError."""
        self._stores = tuple(Path(store) for store in spec.stores)
        self._name = spec.name
        self._foreground = spec.foreground
        self.exit_code = KILLED  # unless the last message says otherwise
        self.seconds = 0.0
        self.files: dict[str, str] = {}
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fd = spec.to_fd()
        try:
            # -I and -S: nothing of the user's environment or directory is imported, and the start takes a third.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", _HELPER, _PACKAGES, str(fd), str(theirs.fileno())],
                stdin=stdin,
                stdout=output,
                stderr=output,
                pass_fds=(fd, theirs.fileno()),
                env={"PATH": os.defpath},
                process_group=0,  # Ctrl-C is for the workload or for us
            )
        finally:
            os.close(fd)
            theirs.close()
        try:
            self.workload, self.notes = self._await_held()
        except BaseException:
            self.close()
            raise
        self.started = time.monotonic()

    def _await_held(self) -> tuple[int, tuple[str, ...]]:
        """The first message: the workload's pid and notes. Raises HostError when the sandbox could not be built."""
        message, fds, _, _ = socket.recv_fds(self._control, _MESSAGE, 1)
        facts = decode(message) if message else {"kind": FAILED, "message": "its helper ended early", "hint": ""}
        if facts["kind"] != HELD:
            hint = str(facts["hint"]) or "run `capprofile doctor`, or profile a docker command instead"
            raise HostError(f"the embedded sandbox cannot be built: {facts['message']}", hint)
        (pidfd,) = fds
        try:
            pid = _pid_of(pidfd)
        finally:
            os.close(pidfd)
        notes = facts["notes"]
        assert isinstance(notes, list)
        return pid, tuple(notes)

    def say(self, kind: str) -> None:
        """Send a message; a helper that has ended needs none."""
        with suppress(OSError):
            self._control.send(encode(kind))

    def wait(self, deadline: float | None) -> bool:
        """Wait until the run has ended and set `exit_code`; False when `deadline` (monotonic, s) comes first."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            patience = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not selector.select(patience):
                return False
        self._read_end()
        return True

    def capture(self, timeout: float | None, service: Service | None = None) -> Outcome:
        """Read the output until the run has ended, or kill it after `timeout` seconds, or when `service` says so."""
        out, err = Stream(), Stream()
        stopped = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            for pipe, stream in ((self._process.stdout, out), (self._process.stderr, err)):
                assert pipe is not None
                selector.register(pipe, selectors.EVENT_READ, stream)
            if service is not None:
                stopped = service.watch(Alone(), lambda seconds: self._read(selector, seconds))
                timed_out = stopped is not None
            else:
                timed_out = not self._read(selector, timeout)
            if timed_out:
                self.say(KILL)
                if not self._read(selector, _LATE):
                    self._process.kill()  # the helper hangs: the kernel ends the namespace with it
                    self._read(selector, None)
        return Outcome(self.exit_code, self.seconds, timed_out, out.tail, err.tail, stopped, self.files, out.written)

    def _read(self, selector: selectors.BaseSelector, seconds: float | None) -> bool:
        """Read output and the helper's message until all have ended; False when `seconds` were not enough."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while selector.get_map():
            ready = selector.select(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if not ready and deadline is not None and time.monotonic() >= deadline:
                return False
            for key, _ in ready:
                if key.data is None:
                    self._read_end()
                elif key.data.read(key.fd):
                    continue
                selector.unregister(key.fileobj)
        return True

    def _read_end(self) -> None:
        """The last message; none when the sandbox was killed."""
        self.seconds = time.monotonic() - self.started
        with suppress(ConnectionResetError):
            message = self._control.recv(_MESSAGE)
            if message and (facts := decode(message))["kind"] == ENDED:
                self.exit_code = int(str(facts["code"]))
                self.seconds = float(str(facts["seconds"]))
                files = facts["files"]
                assert isinstance(files, dict)
                self.files = files

    def close(self) -> None:
        """Kill what runs, wait until the helper has cleaned up, take the terminal back. Idempotent."""
        self._control.close()  # the init ends when it sees this, and all with it
        try:
            self._process.wait(_LATE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:  # it was killed: what it would have removed is here still
            groups = cgroups.leftovers(mounts_of(), lambda name: name == self._name)
            cgroups.remove(groups)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        if self._foreground:
            _take_terminal()
            self._foreground = False
        for store in self._stores:
            remove_layers(store)


def _pid_of(pidfd: int) -> int:
    """The pid of a pidfd's process in our PID namespace (proc_pid_fdinfo(5)); -1 when it has ended."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii").splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise HostError("the kernel does not tell the process of a pidfd", "Linux 5.3 or newer is needed")


def has_terminal() -> bool:
    """Whether we are the foreground group of a terminal."""
    terminal = _terminal()
    if terminal is None:
        return False
    with terminal, suppress(OSError):
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    return False


def _take_terminal() -> None:
    """Become the foreground group again. With SIGTTOU blocked the kernel lets a background group do that."""
    terminal = _terminal()
    if terminal is None:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        with terminal, suppress(OSError):
            os.tcsetpgrp(terminal.fileno(), os.getpgrp())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _terminal() -> BinaryIO | None:
    with suppress(OSError):
        return Path("/dev/tty").open("r+b", buffering=0)
    return None
