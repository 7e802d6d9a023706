"""The embedded sandbox's helper: a program of its own, so that no thread, lock or descriptor of capprofile goes along.

Three processes: the helper (on the host: it makes the control groups and cleans up), the init (process 1 of the new PID
namespace: it builds the root, forks the workload, reaps what is orphaned, and ends everything when the workload's main
process ends, as an engine does) and the workload, which so is an ordinary process and not process 1, whose unhandled
signals the kernel ignores. Whoever of capprofile, helper and init dies: the init ends, and with it its namespace.
Sources: pid_namespaces(7), signal(7), credentials(7), setpgid(2).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from profiler.errors import ProfilerError
from profiler.harness.fingerprint import digest_of, stamp_of
from profiler.harness.loops import let_go, remove_layers
from profiler.harness.native import cgroups, system
from profiler.harness.native import mounts as host_mounts
from profiler.harness.native import root as layers
from profiler.harness.native.spec import ENDED, FAILED, GRACE, HELD, KILL, STOP, Spec, decode, encode
from profiler.kernel import namespaces
from profiler.kernel.capabilities import drop_bounding, set_own
from profiler.kernel.gate import gate_elf
from profiler.kernel.loopback import raise_loopback
from profiler.kernel.loops import BoundLoop, bound
from profiler.kernel.mountinfo import Mount, mounts_of

_MFD_EXEC = 0x10  # linux/memfd.h, Linux 6.3: executable although vm.memfd_noexec says otherwise
_MESSAGE = 4096  # bytes: our longest message is a note a mount
# The parent decides on these; what the helper does not clean up stays. What capprofile was started with as ignored (by
# nohup, or as a shell's background job) the workload ignores too.
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PYTHONS_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)  # ignored by every Python, and meant for none of its children
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as the shell answers (POSIX, 2.8.2)


def main(spec_fd: int, control_fd: int) -> int:
    """Run the sandbox of the specification in `spec_fd`, talking on `control_fd`; returns this program's exit code."""
    defaults = tuple(number for number in _PARENTS_SIGNALS if signal.getsignal(number) != signal.SIG_IGN)
    for number in _PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    spec = Spec.from_fd(spec_fd)
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    host = _look_at_host(spec)
    helper = os.pidfd_open(os.getpid())
    end = _End.make()
    left: tuple[BoundLoop, ...] = ()
    try:
        namespaces.unshare(namespaces.CLONE_NEWPID)
        init = os.fork()
        if init == 0:
            end.close_helpers()
            _init(spec, host, control, helper, defaults, end)
        end.close_inits()
        control.close()
        _let_go_of_stdio()
        left = end.left()
        os.waitpid(init, 0)
    except OSError as error:
        _tell_failure(control, error)
    finally:
        cgroups.remove(host.groups)
        let_go(left)
        for store in spec.stores:
            remove_layers(Path(store))
    return 0


@dataclass(frozen=True)
class _End:
    """What init and helper say to each other at the end, over two pipes.

    A file system that was mounted in the sandbox alone is gone with it, but for a file that a loop device is bound to:
    that has no path then, and only its device's number tells whose it was. Init names those numbers and waits for the
    helper to have looked, since the kernel gives a number away again.
    """

    told: int  # the helper reads init's words here
    tell: int
    waits: int  # init waits here for the end
    wait_over: int

    @classmethod
    def make(cls) -> _End:
        return cls(*os.pipe(), *os.pipe())

    def close_helpers(self) -> None:
        os.close(self.told)
        os.close(self.wait_over)

    def close_inits(self) -> None:
        os.close(self.tell)
        os.close(self.waits)

    def say(self) -> None:
        """Init's part. Quiet when the helper is gone."""
        with contextlib.suppress(OSError):
            os.write(self.tell, json.dumps(sorted(_devices_mounted())).encode())
            os.close(self.tell)
            os.read(self.waits, 1)

    def left(self) -> tuple[BoundLoop, ...]:
        """The helper's part, which waits for init's: the loop devices on file systems of the sandbox alone. None when
        init was killed."""
        with os.fdopen(self.told, "rb") as told:
            words = told.read()
        devices = frozenset(json.loads(words)) - {mount.device for mount in mounts_of()} if words else frozenset()
        loops = tuple(loop for loop in bound() if loop.device in devices)
        os.close(self.wait_over)
        return loops


def _devices_mounted() -> set[int]:
    """The anonymous devices (tmpfs, overlays) that are mounted for any process of this PID namespace."""
    found: set[int] = set()
    for entry in os.listdir("/proc"):  # noqa: PTH208 (names only)
        if entry.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                found.update(mount.device for mount in mounts_of(entry) if os.major(mount.device) == 0)
    return found


@dataclass(frozen=True)
class _Host:
    """What the helper found and made on the host for this run."""

    mounts: tuple[Mount, ...]
    hierarchies: tuple[cgroups.Hierarchy, ...]  # those in which the run has a group
    groups: tuple[Path, ...]
    notes: tuple[str, ...]


def _look_at_host(spec: Spec) -> _Host:
    """Read the mount table and make the run's control groups."""
    mounts = host_mounts.visible(mounts_of())
    hierarchies = cgroups.hierarchies(mounts, Path("/proc/self/cgroup").read_text(errors="surrogateescape"))
    groups, limited = cgroups.make(hierarchies, spec.name, spec.device_rules)
    notes = () if limited else ("nodes that the workload makes itself are not limited: no control group for devices",)
    mine = tuple(hierarchy for hierarchy in hierarchies if hierarchy.mount.point in groups)
    return _Host(mounts, mine, tuple(groups.values()), notes)


def _init(
    spec: Spec, host: _Host, control: socket.socket, helper: int, defaults: tuple[signal.Signals, ...], end: _End
) -> NoReturn:
    """Process 1: never returns. Its own end ends every process of the namespace. The workload gets `defaults` reset."""
    try:
        umask = os.umask(0o022)
        notes = host.notes + _build(spec, host)
        before = {path: stamp_of(path) for path in spec.expected}
        started = time.monotonic()
        workload, pidfd = _start(spec, umask, defaults)
        _let_go_of_stdio()
        socket.send_fds(control, [encode(HELD, notes=notes)], [pidfd])
        status = _attend(control, helper, workload, pidfd)
        seconds = time.monotonic() - started
        files = {path: digest_of(path) if stamp_of(path) != stamp else "" for path, stamp in before.items()}
        control.send(encode(ENDED, code=128 - status if status < 0 else status, seconds=seconds, files=files))
    except (OSError, ProfilerError) as error:
        _tell_failure(control, error)
    finally:
        end.say()
        os._exit(0)


def _build(spec: Spec, host: _Host) -> tuple[str, ...]:
    """Enter the new namespaces and their root, standing in the workload's directory. Returns notes."""
    if spec.own_session:
        os.setsid()
    cgroups.join(host.groups)
    network = namespaces.CLONE_NEWNET if spec.private_network else 0
    new = namespaces.CLONE_NEWNS | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWUTS | namespaces.CLONE_NEWCGROUP
    namespaces.unshare(new | network)
    if spec.private_network:
        raise_loopback()
    terminal = os.ttyname(0) if os.isatty(0) else None
    layers.make_private()
    root, notes = layers.build(host_mounts.own_layers(host.mounts), spec.stores, spec.hidden)
    system.mount_proc(root, host.mounts, own_network=spec.private_network)
    system.mount_sys(root, host.mounts, host.hierarchies)
    system.keep_proc_visible(root, host.mounts)
    system.mount_dev(root, spec.nodes, spec.links, terminal)
    layers.enter(root, spec.cwd)
    return notes


def _start(spec: Spec, umask: int, defaults: tuple[signal.Signals, ...]) -> tuple[int, int]:
    """Fork the workload; returns its pid here and a pidfd once it has become its program, or has failed to."""
    executed, execute = os.pipe()  # close-on-exec: its end is the news
    gate = _gate_fd() if spec.at_gate else None
    workload = os.fork()
    if workload == 0:
        try:
            _become(spec, umask, defaults, gate)
        except OSError as error:
            os.write(2, f"capprofile: {spec.argv[0]}: {error.strerror}\n".encode(errors="replace"))
            os._exit(NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE)
        finally:
            os._exit(NOT_EXECUTABLE)
    os.close(execute)
    if gate is not None:
        os.close(gate)
    pidfd = os.pidfd_open(workload)
    os.read(executed, 1)
    os.close(executed)
    return workload, pidfd


def _let_go_of_stdio() -> None:
    """Leave the standard streams to the workload alone, so that the other ends see when it closes them."""
    with open(os.devnull, "r+b", buffering=0) as nothing:  # noqa: PTH123 (a plain descriptor)
        for fd in (0, 1, 2):
            os.dup2(nothing.fileno(), fd)


def _gate_fd() -> int:
    """The gate as a memfd: it needs no place in the sandbox's root, which may be mounted noexec where we can write."""
    try:
        fd = os.memfd_create("capprofile-gate", os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create("capprofile-gate")
    os.write(fd, gate_elf())
    # Linux refuses to execute what is open for writing (ETXTBSY).
    readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return readable


def _become(spec: Spec, umask: int, defaults: tuple[signal.Signals, ...], gate: int | None) -> NoReturn:
    """In the workload's process: take its group, privileges and program. Raises OSError when it cannot be executed."""
    os.setpgid(0, 0)  # `kill 0` in a script must not reach capprofile
    if spec.foreground:
        _take_terminal()
    for number in (*defaults, *_PYTHONS_SIGNALS):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whatever the thread blocked that started us
    os.umask(umask)
    kept = frozenset(spec.capabilities)
    drop_bounding(kept)
    set_own(kept, kept, frozenset())
    env = dict(spec.env)
    if gate is not None:
        os.execve(gate, spec.argv, env)
    os.execvpe(spec.argv[0], spec.argv, env)


def _take_terminal() -> None:
    """Become the foreground group, so that Ctrl-C reaches the workload, as in a shell."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else a background group is stopped for asking
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        os.tcsetpgrp(terminal, os.getpgrp())
        os.close(terminal)
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)


def _attend(control: socket.socket, helper: int, workload: int, pidfd: int) -> int:
    """Reap orphans and obey the parent until the workload's main process ends; returns its exit code, or minus the
    signal that killed it. Returns early, with SIGKILL, when parent or helper is gone or it is told to kill."""
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    poll = select.poll()
    for fd in (control.fileno(), helper, woken):
        poll.register(fd, select.POLLIN)
    deadline: float | None = None
    while True:
        status = _reap(workload)
        if status is not None:
            return status
        patience = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = {fd for fd, _ in poll.poll(patience)}
        if helper in ready or (not ready and deadline is not None):
            return -signal.SIGKILL
        if control.fileno() in ready:
            message = control.recv(_MESSAGE)
            kind = decode(message)["kind"] if message else KILL
            if kind == KILL:
                return -signal.SIGKILL
            if kind == STOP and deadline is None:
                deadline = time.monotonic() + GRACE
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if woken in ready:
            os.read(woken, _MESSAGE)


def _reap(workload: int) -> int | None:
    """Reap every child that has ended; the workload's exit code when it was among them (minus a killing signal)."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == workload:
            found = os.waitstatus_to_exitcode(status)


def _tell_failure(control: socket.socket, error: OSError | ProfilerError) -> None:
    """Say that the sandbox could not be built. The parent may be gone."""
    hint = error.hint if isinstance(error, ProfilerError) else ""
    with contextlib.suppress(OSError):
        control.send(encode(FAILED, message=str(error), hint=hint))
