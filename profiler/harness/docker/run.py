"""One container from start to removal: held at its gate on our stdio, or untraced with its output captured."""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from profiler.errors import HostError, ProfilerError
from profiler.harness.docker.engine import Engine, Refused
from profiler.harness.docker.files import Produced
from profiler.harness.interface import Caught
from profiler.harness.service import Service
from profiler.harness.stream import Stream
from profiler.kernel.stops import let_die
from profiler.leftovers import start_time
from profiler.model import Moved, Outcome

_CLIENT_SECONDS = 10.0  # for the client to hand over the last output and end, once its container has ended
_WALL = 0x40000000  # linux/wait.h __WALL: children and tracees of every kind
_REAP_SECONDS = 5.0
_ENGINE_SECONDS = 60.0  # for the engine to start a container, and to tell its end
_KILL_MILLISECONDS = 100
_REAP_LOOK_SECONDS = 0.005
_INSIDE_SECONDS = 300.0  # for a user's check
_LOOK_SECONDS = 1.0  # between two looks whether an engine is still there, when its client has ended early


class Living:
    """A container that runs: implements `Running`."""

    def __init__(self, engine: Engine, container: str, moved: Moved = ()) -> None:
        self._engine = engine
        self._container = container
        self.moved = moved

    def health(self) -> str:
        """The engine's word for its health check; empty when it makes none."""
        return str((self._engine.inspect(self._container)["State"].get("Health") or {}).get("Status", ""))

    def inside(self, command: str) -> Outcome:
        """`docker exec` of a shell, as the container's own user. HostError when it does not end in time."""
        started = time.monotonic()
        done = self._engine.client("exec", self._container, "/bin/sh", "-c", command, seconds=_INSIDE_SECONDS)
        return Outcome(done.returncode, time.monotonic() - started, stdout=done.stdout, stderr=done.stderr)


class HeldRun:
    """A container at its gate, with the real client attached to it: implements `TracedRun`."""

    def __init__(
        self,
        engine: Engine,
        container: str,
        child: subprocess.Popen[bytes],
        init: int,
        caught: Caught,
        produced: Produced,
        moved: Moved = (),
    ) -> None:
        """Take over `container` and `child`. `init` is the pid, on this host, of the container's first process; `moved`
        are the places that the container has instead of the user's."""
        self._produced = produced
        self._moved = moved
        self._engine = engine
        self._container = container
        self._child = child
        self._caught = caught
        try:
            self._init = os.pidfd_open(init)
        except ProcessLookupError as error:
            raise HostError("the container ended at its gate", "another program stopped it: run again") from error
        self._client = None if child.poll() is not None else os.pidfd_open(child.pid)
        self._started = time.monotonic()
        self._closed = False

    @property
    def caught(self) -> Caught:
        """The held process."""
        return self._caught

    @property
    def running(self) -> Living:
        """What can be asked of the run while it goes on."""
        return Living(self._engine, self._container, self._moved)

    def wait(self, deadline: float | None = None) -> Outcome:
        """Wait for the container's end; past `deadline` (monotonic clock, seconds) stop it as `docker stop` does.

        Raises HostError when the engine goes away meanwhile or the container is removed by another.
        """
        timed_out = not self._await_end(deadline)
        if timed_out:
            self.stop()
            self._await_end(None)
        code = self._engine.exit_code(self._container)
        seconds = time.monotonic() - self._started
        _end(self._child)
        return Outcome(code, seconds, timed_out, files=self._produced.digests())

    def _await_end(self, deadline: float | None) -> bool:
        """False when `deadline` passed first."""
        poller = select.poll()
        poller.register(self._init, select.POLLIN)
        client_lives = self._client is not None
        if self._client is not None:
            poller.register(self._client, select.POLLIN)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            look = None if client_lives else _LOOK_SECONDS
            ready = dict(poller.poll(_milliseconds(left, look)))
            if self._init in ready:
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if self._client in ready:  # detached by its key sequence, its output was closed, or the engine went away
                poller.unregister(self._client)
                client_lives = False
            if not client_lives and not self._engine.answers():
                raise HostError("the Docker engine went away while the workload ran", "start it and run again")

    def stop(self) -> None:
        """`docker stop`: its stop signal, its grace, SIGKILL. Safe from any thread, quiet when it has ended."""
        try:
            self._engine.stop(self._container)
        except HostError:  # a grace period longer than the engine's answer may take, or no engine
            with suppress(ProfilerError):
                self._engine.kill(self._container)

    def lost(self) -> bool:
        """Whether the engine has gone away. It is asked only once its client has ended: a client that waits has one."""
        return self._child.poll() is not None and not self._engine.answers()

    def close(self) -> None:
        """Remove the container with its anonymous volumes, and end the client. Idempotent; quiet without an engine."""
        if self._closed:
            return
        self._closed = True
        self._end_init()
        with suppress(ProfilerError):  # what an engine that is gone keeps carries our label: clean_leftovers finds it
            self._engine.remove(self._container)
        _end(self._child)
        os.close(self._init)
        if self._client is not None:
            os.close(self._client)

    def _end_init(self) -> None:
        """Kill the container's first process, and take the tracee's end if a tracer of ours has not.

        Whoever traces a process must wait for its end before its parent may (wait_task_zombie in kernel/exit.c): after
        a tracer's failure the engine would wait for a container that never ends.
        """
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._init, signal.SIGKILL)
        deadline = time.monotonic() + _REAP_SECONDS
        while _is_our_tracee(self._caught.pid) and time.monotonic() < deadline:
            with suppress(ChildProcessError):  # the tracer took it just now
                os.waitpid(self._caught.pid, os.WNOHANG | _WALL)
                let_die(self._caught.pid)
            select.select([], [], [], _REAP_LOOK_SECONDS)


def _is_our_tracee(pid: int) -> bool:
    """Whether a thread of this process traces `pid`: TracerPid of proc_pid_status(5) is the thread's id."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    tracer = status.partition("TracerPid:")[2].split()[0]
    return tracer != "0" and Path(f"/proc/self/task/{tracer}").exists()


def captured(
    engine: Engine,
    container: str,
    *,
    interactive: bool,
    stdin: IO[bytes],
    timeout: float | None,
    service: Service | None = None,
    expected: tuple[str, ...] = (),
    moved: Moved = (),
) -> Outcome:
    """Start a created container, wait for its end, and return it with the last 64 KiB of each output.

    After `timeout` seconds, or when `service` says so, it is killed and the outcome says so. A container that does not
    start gives the exit code of `docker run` for it (127 no such command, 126 not executable, 125 a device that is
    gone) and the engine's words as stderr. `expected` are the files that the outcome tells of, `moved` the places that
    the container has instead of the user's. Removing the container is the caller's part. Raises Refused when the engine
    cannot start it for any other reason.
    """
    produced = Produced(engine, container, expected)
    started = time.monotonic()
    child = engine.attach(
        container,
        interactive=interactive,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        own_group=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    readers = (_Reader(child.stdout), _Reader(child.stderr))
    client = os.pidfd_open(child.pid)
    stopped = None
    try:
        poller = select.poll()
        poller.register(client, select.POLLIN)

        def ended(seconds: float | None) -> bool:
            return bool(poller.poll(_milliseconds(seconds)))

        if service is None:
            timed_out = _hangs(engine, container, ended, timeout)
        else:
            while engine.inspect(container)["State"]["Status"] == "created" and not ended(_REAP_LOOK_SECONDS):
                pass  # a service lives from its start, not from the engine's preparations
            stopped = service.watch(Living(engine, container, moved), ended)
            timed_out = stopped is not None
        if timed_out:
            _kill(engine, container, poller)
        code = _code(engine, container, timed_out)
    except BaseException:  # nobody waits for the client of a container that is about to be removed
        child.kill()
        raise
    finally:
        os.close(client)
        _end(child)
        stdout, stderr = (reader.finish() for reader in readers)
    seconds = time.monotonic() - started
    files = produced.digests()
    return Outcome(code, seconds, timed_out, stdout.tail, stderr.tail, stopped, files, stdout.written, moved)


def _hangs(engine: Engine, container: str, ended: Callable[[float | None], bool], timeout: float | None) -> bool:
    """Wait for the client's end: False; True as soon as the container's first process is older than `timeout` seconds.

    What the engine takes to start a container and to tell its end is not the workload's time: on a busy host it can be
    more than a quick workload's limit.
    """
    if ended(timeout):
        return False
    assert timeout is not None
    patience = time.monotonic() + _ENGINE_SECONDS
    while time.monotonic() < patience:
        state = engine.inspect(container)["State"]
        age = _age(state["Pid"]) if state["Running"] else None
        if age is not None and age >= timeout:
            return True
        if age is not None:
            patience = time.monotonic() + timeout + _ENGINE_SECONDS
        if ended(_LOOK_SECONDS if age is None else timeout - age):
            return False
    return True


def _age(pid: int) -> float | None:
    """How long a process has been running, in seconds; None when it has ended."""
    started = start_time(pid)
    if started is None:
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def _kill(engine: Engine, container: str, client_ended: select.poll) -> None:
    """Kill until the client has ended: a container that is only just starting cannot be killed yet."""
    deadline = time.monotonic() + _CLIENT_SECONDS
    engine.kill(container)
    while not client_ended.poll(_KILL_MILLISECONDS):
        if time.monotonic() > deadline and engine.inspect(container)["State"]["Running"]:
            raise HostError(
                f"the container {container[:12]} does not end on SIGKILL", "one of its processes hangs in the kernel"
            )
        if time.monotonic() > deadline + _ENGINE_SECONDS:
            return  # it has ended, and the client does not notice
        engine.kill(container)


def _code(engine: Engine, container: str, timed_out: bool) -> int:
    state = engine.inspect(container)["State"]
    if state["Status"] != "created":
        return engine.exit_code(container)
    if timed_out:
        return 128 + signal.SIGKILL
    # It did not start. 126 and 127 are the engine's own findings of the command; a node may go away between two runs.
    if state["ExitCode"] in (126, 127):
        return int(state["ExitCode"])
    reason = " ".join(str(state.get("Error") or "it gave no reason for not starting the container").split())
    if "/dev/" in reason:
        return 125
    raise Refused(reason)


def _milliseconds(*seconds: float | None) -> int | None:
    """The shortest of some times, for poll(2): rounded up, and None when there is none."""
    known = [each for each in seconds if each is not None]
    return min(math.ceil(min(known) * 1000), 1 << 30) if known else None


class _Reader:
    """Reads a stream to its end in a thread, so that the writer never waits for us."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._stream = Stream()
        self._thread = threading.Thread(target=self._read, name="output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while self._stream.read(self._pipe.fileno()):
            pass

    def finish(self) -> Stream:
        """What was read, once the stream has ended."""
        self._thread.join()
        self._pipe.close()
        return self._stream


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for the client, which ends by itself after its container; kill it if it does not."""
    try:
        child.wait(_CLIENT_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
