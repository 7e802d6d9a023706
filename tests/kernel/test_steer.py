"""A real gate, steered: calls, filter, ids, the workload it becomes, its signals and its end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pace import SLOWER

from profiler.errors import HostError, WorkloadError
from profiler.harness.interface import Credentials
from profiler.kernel import bpf, gate, memory, stops
from profiler.kernel.capabilities import sets_of
from profiler.kernel.steer import ExecutionError, Steered, TraceeEndedError

pytestmark = pytest.mark.kernel

GETPID, GETPRIORITY = 39, 140
ENV = ("PATH=/usr/bin:/bin", "WORD=caf\udce9")
RECV, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_* of linux/seccomp.h
CONTINUE = 1


def until(condition, seconds=20.0 * SLOWER):
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return answer


@pytest.fixture
def gate_file(tmp_path):
    path = tmp_path / "gate"
    path.write_bytes(gate.gate_elf())
    path.chmod(0o555)
    return path


class Output:
    """A pipe that a workload writes to."""

    def __init__(self):
        self.read_end, self.write_end = os.pipe()

    def read(self):
        os.close(self.write_end)
        with os.fdopen(self.read_end, "rb") as pipe:
            text = pipe.read().decode(errors="surrogateescape")
        self.read_end = self.write_end = -1
        return text

    def close(self):
        for fd in (self.read_end, self.write_end):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def output():
    pipe = Output()
    yield pipe
    pipe.close()


@pytest.fixture
def paused(gate_file, output):
    """The pid of a gate, a child of this test whose stdout is `output`."""
    actions = [(os.POSIX_SPAWN_DUP2, output.write_end, 1)]
    pid = os.posix_spawn(gate_file, ["gate"], {}, file_actions=actions)
    until(lambda: gate.is_at_gate(pid))
    yield pid
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def steered(paused):
    tracee = Steered.seize(paused)
    yield tracee
    tracee.kill()
    tracee.detach()


def shell(steered, script):
    steered.execute(("sh", "-c", script), ENV)


def answer(listener, times, reply):
    """Answer `times` notified calls with what `reply(number)` says: (val, error, flags)."""

    def work():
        for _ in range(times):
            call = bytearray(80)
            fcntl.ioctl(listener, RECV, call)
            number = struct.unpack_from("<Qiii", call)[3]
            fcntl.ioctl(listener, SEND, struct.pack("<QqiI", *struct.unpack_from("<Q", call), *reply(number)))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def notified(*numbers):
    return bpf.assemble([bpf.Rule(number) for number in numbers], action=bpf.RET_USER_NOTIF)


# --------------------------------------------------------------------------------------------------------------------
# Calls


def test_it_makes_calls_and_answers_as_the_kernel_does(steered, paused):
    assert steered.syscall(GETPID) == paused
    assert steered.syscall(3, 999) == -errno.EBADF
    assert steered.syscall(GETPID) == paused


def test_memory_is_written(steered, paused):
    small = steered.write(b"first\0")
    second = steered.write(b"second\0")
    large = steered.write(b"x" * 300_000)
    assert small % 16 == 0
    assert small != second
    assert memory.read_string(paused, small) == "first"
    assert memory.read_string(paused, second) == "second"
    assert memory.read_bytes(paused, large, 300_001) == b"x" * 300_000 + b"\0"


def test_calls_are_made_at_a_gate_only():
    with subprocess.Popen(["sleep", "60"]) as process:
        tracee = Steered.seize(process.pid)
        with pytest.raises(HostError, match="not at the gate"):
            tracee.syscall(GETPID)
        tracee.kill()
    assert process.returncode == -signal.SIGKILL  # left for its parent to see


def test_requests_of_another_thread_are_refused(steered):
    caught = []

    def work():
        try:
            steered.syscall(GETPID)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert caught


# --------------------------------------------------------------------------------------------------------------------
# The workload


def test_it_becomes_a_program_found_in_path(steered, output):
    shell(steered, 'echo "$0|$WORD|$1"; exit 7')
    assert steered.hold() == 7
    assert steered.status == 7
    assert output.read() == "sh|caf\udce9|\n"


def slow_gate_elf():
    """The gate with as many segments more as fit (a page of headers: load_elf_phdrs in fs/binfmt_elf.c), each with a
    part to be cleared: its memory looks like the gate's long before its exec has ended."""
    header = bytearray(gate.gate_elf())
    offset, count = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
    own = bytes(header[offset : offset + 56 * count])
    more = [
        struct.pack("<IIQQQQQQ", gate.PT_LOAD, gate.PF_R | gate.PF_W, 0, address, address, 64, 0x2000, 0x1000)
        for address in range(0x1000000, 0x1000000 + (4096 // 56 - count) * 0x4000, 0x4000)
    ]
    struct.pack_into("<Q", header, 32, len(header))
    struct.pack_into("<H", header, 56, count + len(more))
    return bytes(header) + own + b"".join(more)


def test_it_is_stopped_though_its_exec_has_not_yet_ended(tmp_path):
    program = tmp_path / "slow"
    program.write_bytes(slow_gate_elf())
    program.chmod(0o555)
    for _ in range(100):  # many of them are seized before the stop that reports their exec
        pid = os.posix_spawn(program, ["slow"], {})
        try:
            while not gate.is_at_gate(pid):
                pass
            tracee = Steered.seize(pid)
            assert tracee.syscall(GETPID) == pid
            tracee.detach()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_arguments_and_environment_are_what_was_asked(steered, output):
    steered.execute(("/bin/sh", "-c", 'printf "%s," "$0" "$@"; tr "\\0" , </proc/self/environ', "a b", "", "c"), ENV)
    assert steered.hold() == 0
    assert output.read() == "a b,,c,PATH=/usr/bin:/bin,WORD=caf\udce9,"


def test_without_path_dockers_default_is_searched(steered):
    steered.execute(("true",), ())
    assert steered.hold() == 0


def test_a_long_command_line(steered, output):
    steered.execute(("sh", "-c", 'echo "${#1}"', "sh", "y" * 100_000), ENV)
    assert steered.hold() == 0
    assert output.read() == "100000\n"


@pytest.mark.parametrize(
    ("program", "code"),
    [("no-such-program", 127), ("/no/such", 127), ("/etc/passwd", 126), ("/etc", 126), ("", 127)],
)
def test_what_cannot_be_executed(steered, program, code):
    with pytest.raises(ExecutionError) as error:
        steered.execute((program,), ENV)
    assert isinstance(error.value, WorkloadError)
    assert error.value.shell_code == code
    assert error.value.hint
    assert steered.syscall(GETPID) == steered.pid  # the gate is still held


def test_search_goes_on_after_what_may_not_be_executed(steered, tmp_path, output):
    first, last = tmp_path / "first", tmp_path / "last"
    for directory, mode in ((first, 0o644), (last, 0o755)):
        directory.mkdir()
        program = directory / "prog"
        program.write_text(f"#!/bin/sh\necho {directory.name}\n")
        program.chmod(mode)
    with pytest.raises(ExecutionError) as error:
        steered.execute(("prog",), (f"PATH={first}:/etc/passwd",))
    assert error.value.shell_code == 126
    steered.execute(("prog",), (f"PATH={first}:/etc/passwd:{last}",))
    assert steered.hold() == 0
    assert output.read() == "last\n"


def test_a_file_of_no_known_format(steered, tmp_path):
    program = tmp_path / "prog"
    program.write_text("echo no interpreter line\n")
    program.chmod(0o755)
    with pytest.raises(ExecutionError, match="Exec format error") as error:
        steered.execute((str(program),), ENV)
    assert error.value.shell_code == 126


def test_it_takes_an_ordinary_users_ids(steered, output):
    steered.take(Credentials(1000, 1001, (1001, 2002)))
    assert not sets_of(steered.pid).effective
    shell(steered, "id -u; id -g; id -G; grep CapEff /proc/self/status")
    assert steered.hold() == 0
    assert os.fstat(output.read_end).st_uid == 1000
    assert output.read().split() == ["1000", "1001", "1001", "2002", "CapEff:", "0" * 16]


# --------------------------------------------------------------------------------------------------------------------
# The filter


def test_a_filter_with_its_listener(steered):
    listener = steered.install_filter(notified(GETPRIORITY))
    try:
        assert not os.get_inheritable(listener)
        assert not [link for link in Path(f"/proc/{steered.pid}/fd").iterdir() if "seccomp" in str(link.readlink())]
        thread = answer(listener, 2, lambda number: (4242, 0, 0) if number == GETPRIORITY else (0, -1, 0))
        assert steered.syscall(GETPRIORITY, 0, 0) == 4242
        assert steered.syscall(GETPID) == steered.pid
        assert steered.syscall(GETPRIORITY, 0, 0) == 4242
        thread.join()
    finally:
        os.close(listener)


def test_notified_steps_into_the_workload(steered, output):
    """The exec itself, the ids and the calls of the workload's children are notified, and go on when told so."""
    listener = steered.install_filter(notified(59, 105, 106, 116))
    try:
        thread = answer(listener, 5, lambda _: (0, 0, CONTINUE))
        steered.take(Credentials(1000, 1000, ()))
        shell(steered, "/usr/bin/id -u; exit 3")
        assert steered.hold() == 3
        thread.join()
        assert output.read() == "1000\n"
    finally:
        os.close(listener)


def test_a_second_listener_is_refused(steered):
    listener = steered.install_filter(notified(GETPRIORITY))
    try:
        with pytest.raises(HostError, match="Device or resource busy") as error:
            steered.install_filter(notified(GETPRIORITY))
    finally:
        os.close(listener)
    assert "listener" in error.value.hint


def test_without_sys_admin_a_filter_is_refused(steered):
    steered.take(Credentials(1000, 1000, ()))
    with pytest.raises(HostError, match="Permission denied") as error:
        steered.install_filter(notified(GETPRIORITY))
    assert "CAP_SYS_ADMIN" in error.value.hint


def test_what_is_no_filter(steered):
    with pytest.raises(ValueError, match="sock_filter"):
        steered.install_filter(b"123")
    with pytest.raises(HostError, match="Invalid argument"):
        steered.install_filter(bytes(8))


# --------------------------------------------------------------------------------------------------------------------
# Signals, job control, the end


def test_a_signal_that_came_early_reaches_the_workload(steered):
    os.kill(steered.pid, signal.SIGTERM)
    assert steered.syscall(GETPID) == steered.pid
    shell(steered, "exit 0")
    assert steered.hold() == -signal.SIGTERM


def test_a_stop_and_its_end_that_came_early(steered):
    os.kill(steered.pid, signal.SIGSTOP)
    assert steered.syscall(GETPID) == steered.pid
    os.kill(steered.pid, signal.SIGCONT)
    assert steered.syscall(GETPID) == steered.pid
    shell(steered, f"(until kill -CONT {steered.pid}; do :; done) & exit 4")
    waker = threading.Thread(target=lambda: keep_waking(steered))
    waker.start()
    assert steered.hold() == 4
    waker.join()


def keep_waking(tracee):
    def wake():
        with contextlib.suppress(ProcessLookupError):
            os.kill(tracee.pid, signal.SIGCONT)
        return tracee.status is not None

    until(wake)


def test_the_workloads_signals_are_its_own(steered):
    shell(steered, "trap 'exit 9' USR1; kill -USR1 $$; exit 1")
    assert steered.hold() == 9


def test_a_stopped_workload_stays_stopped_until_continued(steered, monkeypatch):
    seen = []
    real = stops.wait

    def wait(pid, **options):
        stop = real(pid, **options)
        seen.append(stop)
        if isinstance(stop, stops.Stop) and stop.is_group_stop:
            os.kill(pid, signal.SIGCONT)
        return stop

    monkeypatch.setattr(stops, "wait", wait)
    shell(steered, "trap 'echo' CONT; kill -STOP $$; exit 4")
    assert steered.hold() == 4
    assert any(isinstance(stop, stops.Stop) and stop.is_group_stop for stop in seen)


def test_it_is_held_through_further_execs(steered, output):
    shell(steered, "exec sh -c 'grep TracerPid /proc/self/status; exec sh -c \"grep TracerPid /proc/$$/status\"'")
    assert steered.hold() == 0
    assert output.read().split() == ["TracerPid:", "0", "TracerPid:", str(os.getpid())]  # only it, never its children


def test_an_exec_by_another_thread(steered):
    script = "import os, threading; threading.Thread(target=os.execv, args=('/bin/sh', ['sh', '-c', 'exit 5'])).start()"
    steered.execute((sys.executable, "-c", script + "; threading.Event().wait()"), ENV)
    assert steered.hold() == 5


def test_kill_from_another_thread_ends_the_hold(steered):
    steered.execute(("sleep", "60"), ENV)
    thread = threading.Thread(target=steered.kill)
    thread.start()
    assert steered.hold() == -signal.SIGKILL
    thread.join()


def test_it_is_killed_while_it_is_steered(steered):
    os.kill(steered.pid, signal.SIGKILL)
    with pytest.raises(TraceeEndedError) as error:
        until(lambda: steered.syscall(GETPID) < 0)
    assert error.value.status == -signal.SIGKILL
    with pytest.raises(TraceeEndedError):
        steered.write(b"more")
    steered.kill()
    steered.detach()


def test_no_such_process():
    with pytest.raises(TraceeEndedError):
        Steered.seize(2**22 + 1)


def test_a_zombie(gate_file):
    pid = os.posix_spawn(gate_file, ["gate"], {})
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(TraceeEndedError):
        Steered.seize(pid)
    os.waitpid(pid, 0)


def test_detached_at_the_gate_it_pauses_again(steered):
    pid = steered.pid
    steered.syscall(GETPID)
    steered.detach()
    steered.detach()
    again = Steered.seize(pid)
    assert again.syscall(GETPID) == pid
    again.kill()


def test_detached_after_exec_it_goes_on(steered, output):
    shell(steered, "echo on; exit 6")
    steered.detach()
    assert os.waitstatus_to_exitcode(os.waitpid(steered.pid, 0)[1]) == 6
    assert output.read() == "on\n"


def test_it_dies_with_its_tracer(paused):
    tracer = """
import sys
from profiler.kernel.steer import Steered
steered = Steered.seize(int(sys.argv[1]))
steered.execute(("sleep", "60"), ("PATH=/usr/bin:/bin",))
print("held", flush=True)
steered.hold()
"""
    with subprocess.Popen([sys.executable, "-c", tracer, str(paused)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        process.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(paused, 0)[1]) == -signal.SIGKILL


def child_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return next((int(pid) for pid in children.read_text().split() if gate.is_at_gate(int(pid))), None)


def test_the_init_of_a_pid_namespace(gate_file):
    """Not our child: its parent learns the end after us. Its SIGSTOP to itself is ignored, as it is untraced."""
    with subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", gate_file]) as process:
        steered = Steered.seize(until(lambda: child_of(process)))
        assert steered.syscall(GETPID) == 1
        os.kill(steered.pid, signal.SIGUSR1)  # an init gets none that it does not handle
        steered.execute(("sh", "-c", "kill -STOP $$; kill -TERM $$; exit 3"), ENV)
        assert steered.hold() == 3
    assert process.returncode == 3


# --------------------------------------------------------------------------------------------------------------------
# Giving up capabilities


SETS = "grep -E '^Cap(Inh|Prm|Eff|Bnd)' /proc/self/status"


def test_it_gives_up_all_but_some_capabilities(steered, output):
    kept = frozenset({"CHOWN", "KILL"})
    steered.limit_bounding(kept)
    steered.limit(kept)
    shell(steered, SETS)
    steered.hold()
    sets = dict(line.split() for line in output.read().splitlines())
    both = f"{1 << 0 | 1 << 5:016x}"
    assert (sets["CapBnd:"], sets["CapPrm:"], sets["CapEff:"], sets["CapInh:"]) == (both, both, both, "0" * 16)


def test_a_user_is_taken_between_the_two(steered, output):
    kept = frozenset({"NET_RAW"})
    steered.reduce(Credentials(1000, 1000, ()), kept)
    shell(steered, SETS)
    steered.hold()
    sets = dict(line.split() for line in output.read().splitlines())
    assert (sets["CapBnd:"], sets["CapPrm:"], sets["CapEff:"]) == (f"{1 << 13:016x}", "0" * 16, "0" * 16)
