"""Whole traced runs of real programs, started at the gate in a mount namespace of their own, without any engine."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from profiler.errors import HostError
from profiler.harness.interface import Caught, Credentials, Service
from profiler.harness.native.run import Alone
from profiler.kernel import gate
from profiler.kernel.steer import ExecutionError
from profiler.model import Observation, Outcome, Stopped, Trace
from profiler.tracer import recorder, session
from profiler.tracer.session import trace

pytestmark = pytest.mark.kernel


class PlainRun:
    """A TracedRun without an engine: a child process at the gate, in a mount namespace of its own."""

    def __init__(
        self,
        directory: Path,
        argv: tuple[str, ...],
        credentials: Credentials | None = None,
        before: tuple[str, ...] = (),
    ) -> None:
        program = directory / "gate"
        program.write_bytes(gate.gate_elf())
        program.chmod(0o755)
        unshare = shutil.which("unshare")
        assert unshare is not None
        self.process = subprocess.Popen(
            [unshare, "--mount", "--propagation", "private", *before, str(program)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        end = time.monotonic() + 10
        while not gate.is_at_gate(self.process.pid):
            assert self.process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.002)
        self.caught = Caught(self.process.pid, argv, (f"PATH={os.environ['PATH']}", "LC_ALL=C"), credentials)
        self.running = Alone()
        self.stopped = 0
        self.closed = 0
        self.output = b""

    def wait(self, deadline: float | None = None) -> Outcome:
        timed_out = False
        try:
            self.process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            timed_out = True
            self.stop()
            self.process.wait()
        return Outcome(self.process.returncode, 0.0, timed_out)

    def lost(self) -> bool:
        return False

    def stop(self) -> None:
        self.stopped += 1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.closed += 1
        self.process.wait()
        assert self.process.stdout is not None
        if not self.process.stdout.closed:
            self.output = self.process.stdout.read()
            self.process.stdout.close()


def run_and_trace(directory: Path, *argv: str, **options: object) -> tuple[Trace, PlainRun]:
    run = PlainRun(directory, argv)
    return trace(run, **options), run  # type: ignore[arg-type]


def calls(found: Trace, name: str) -> list[Observation]:
    return [observation for observation in found.observations if observation.call == name]


def test_calls_their_results_and_checks_are_joined(tmp_path: Path) -> None:
    # busybox's: newer releases of util-linux mount by other calls
    script = "busybox mount -t tmpfs -o size=64k none /mnt && chroot / true; chroot /no/such true; exit 3"
    found, run = run_and_trace(tmp_path, "sh", "-c", script)
    assert found.exit_code == 3
    (first,) = calls(found, "mount")
    assert first.result == 0
    assert first.args[:3] == ('"none"', '"/mnt"', '"tmpfs"')
    assert first.path == "/mnt"
    assert first.process.argv[:2] == ("busybox", "mount")
    assert any(c.capability == "SYS_ADMIN" and c.granted for c in first.checks)
    chroot, failed = calls(found, "chroot")
    assert (chroot.path, chroot.result) == ("/", 0)
    assert (failed.path, failed.result) == ("/no/such", -errno.ENOENT)
    assert "SYS_CHROOT" in {c.capability for c in chroot.checks}
    assert found.losses == {}
    assert run.closed == 1
    assert found.processes >= 3


def test_steering_is_not_recorded(tmp_path: Path) -> None:
    run = PlainRun(tmp_path, ("sh", "-c", "id -u; id -g"), Credentials(1000, 1001, (7,)))
    found = trace(run)
    assert run.output == b"1000\n1001\n"
    assert not calls(found, "setuid")
    assert not calls(found, "setgroups")
    assert found.exit_code == 0


def test_a_tracer_inside_the_workload_works(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    found, run = run_and_trace(tmp_path, strace, "-f", "-e", "trace=chroot", "chroot", "/", "true")
    assert found.exit_code == 0
    assert b'chroot("/")' in run.output
    assert calls(found, "chroot")[0].result == 0
    assert any("other processes are traced by" in note for note in found.notes)


def test_two_thousand_forks_are_quick(tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 2000 ]; do (: >/dev/null); i=$((i+1)); done"
    found, _ = run_and_trace(tmp_path, "sh", "-c", script)
    assert found.exit_code == 0
    assert found.processes == 2001
    assert sum(o.count for o in calls(found, "openat") if o.args) == 2000
    print(f"{found.seconds:.2f} s for 2000 forks")


def test_a_child_that_outlives_the_main_process_is_seen(tmp_path: Path) -> None:
    script = "(trap '' HUP; read x </proc/self/stat; chroot / true) & exit 0"
    found, _ = run_and_trace(tmp_path, "sh", "-c", script)
    assert found.exit_code == 0
    assert calls(found, "chroot")
    assert found.losses == {}


def test_a_killed_workload_ends_the_trace(tmp_path: Path) -> None:
    found, _ = run_and_trace(tmp_path, "sh", "-c", "kill -9 $$")
    assert found.exit_code == -signal.SIGKILL
    assert calls(found, "kill")


def test_a_timeout_is_a_loss_and_a_stopped_service_is_none(tmp_path: Path) -> None:
    late, run = run_and_trace(tmp_path, "sleep", "600", timeout=0.2)
    assert late.losses == {"timeout": 1}
    assert run.stopped
    service, run = run_and_trace(tmp_path, "sleep", "600", timeout=60, service=Service(0.2))
    assert service.losses == {}
    assert run.stopped
    assert service.exit_code == -signal.SIGKILL
    assert service.stopped == Stopped()


def test_a_service_that_ends_by_itself_was_not_stopped(tmp_path: Path) -> None:
    found, run = run_and_trace(tmp_path, "sh", "-c", "exit 3", service=Service(60.0))
    assert (found.stopped, found.exit_code, run.stopped) == (None, 3, 0)


def test_what_a_service_is_asked_is_asked_before_it_is_stopped(tmp_path: Path) -> None:
    asked = []

    def ask(moved: object) -> str:
        asked.append(run.stopped)
        return "it does not answer"

    run = PlainRun(tmp_path, ("sleep", "600"))
    found = trace(run, service=Service(0.2, check=ask))
    assert found.stopped == Stopped("it does not answer")
    assert asked == [0]


def test_a_failing_question_ends_the_run_with_its_error(tmp_path: Path) -> None:
    def ask(moved: object) -> str:
        raise HostError("the engine is gone")

    run = PlainRun(tmp_path, ("sleep", "600"))
    with pytest.raises(HostError, match="the engine is gone"):
        trace(run, service=Service(0.2, check=ask))
    assert run.process.returncode == -signal.SIGKILL


def test_a_missing_program_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    run = PlainRun(tmp_path, ("no-such-program",))
    with pytest.raises(ExecutionError) as caught:
        trace(run)
    assert caught.value.shell_code == 127
    assert run.process.returncode is not None
    assert run.closed == 1
    assert not [t for t in threading.enumerate() if t.name in ("listener", "alarm", "check-witness")]


def test_a_failing_listener_ends_the_run_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("decoder")

    monkeypatch.setattr(recorder, "decode", broken)
    run = PlainRun(tmp_path, ("sh", "-c", "chroot / sleep 600"))
    with pytest.raises(ZeroDivisionError):
        trace(run)
    assert run.process.returncode == -signal.SIGKILL
    assert run.closed == 1


def test_without_a_witness_the_calls_are_still_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise HostError("no tracefs", "mount it")

    monkeypatch.setattr(session, "CheckWitness", missing)
    found, _ = run_and_trace(tmp_path, "chroot", "/", "true")
    assert calls(found, "chroot")[0].args == ('"/"',)
    assert found.losses == {"no_kernel_witness": 1}


def test_raw_calls_have_numbers_registers_and_results(tmp_path: Path) -> None:
    script = "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()"
    found, _ = run_and_trace(tmp_path, sys.executable, "-c", script, extra_calls=frozenset({"getppid", "close"}))
    (raw,) = [call for call in found.raw_calls if call.name == "socket"]
    assert raw.args[0] == 16
    assert raw.args[1] & 0xF == 3
    assert raw.result is not None
    assert raw.result >= 0


def test_extra_calls_are_notified_whatever_their_arguments(tmp_path: Path) -> None:
    found, _ = run_and_trace(tmp_path, "sh", "-c", "cat /etc/hostname", extra_calls=frozenset({"openat"}))
    assert "/etc/hostname" in {o.path for o in calls(found, "openat")}


def test_devices_are_told_with_who_used_them_and_how(tmp_path: Path) -> None:
    script = """mount -t tmpfs none /mnt && mknod /mnt/fuse c 10 229 && true </mnt/fuse
                mknod /mnt/null c 1 3; true >/mnt/null; true <>/dev/fuse"""
    if not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse")
    found, _ = run_and_trace(tmp_path, "sh", "-c", script)
    uses = {(use.path, Path(use.process.exe).name, use.access, use.made) for use in found.devices}
    shell = Path(shutil.which("sh") or "").resolve().name
    assert uses == {
        ("/dev/fuse", shell, "rw", False),
        ("/mnt/fuse", "mknod", "m", True),
        ("/mnt/fuse", shell, "r", True),
    }
    assert {(use.kind, use.major, use.minor) for use in found.devices} == {("c", 10, 229)}
    assert found.losses == {}


def test_threads_and_many_calls_are_counted(tmp_path: Path) -> None:
    script = """
import os, threading
def work():
    for _ in range(500):
        os.kill(os.getpid(), 0)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    found, _ = run_and_trace(tmp_path, sys.executable, "-c", script)
    assert sum(o.count for o in calls(found, "kill")) == 2000
    assert sum(c.count for c in found.raw_calls if c.name == "kill") == 2000


def test_a_run_without_sys_admin_is_traced_all_the_same(tmp_path: Path) -> None:
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    mounts = ("chroot", "/", "busybox", "mount", "-t", "tmpfs", "none", "/mnt")  # by mount(2), once
    run = PlainRun(tmp_path, mounts, None, (setpriv, "--bounding-set=-sys_admin"))
    found = trace(run)
    (mount,) = calls(found, "mount")
    assert mount.result == -errno.EPERM
    assert [(c.capability, c.granted) for c in mount.checks] == [("SYS_ADMIN", False)]
    assert found.losses == {"no_new_privs": 1}
    assert len(found.notes) == 1


def test_an_interrupt_kills_the_workload(tmp_path: Path) -> None:
    run = PlainRun(tmp_path, ("sh", "-c", "sleep 600 & sleep 600"))
    seen: list[tuple[float, int]] = []

    def interrupt(seconds: float, count: int) -> None:
        seen.append((seconds, count))
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trace(run, on_progress=interrupt)
    assert seen[0][0] >= 1
    assert run.process.returncode == -signal.SIGKILL
    assert sys.getswitchinterval() > session.SWITCH_SECONDS


THIRTY_TWO_BIT = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7)  # MAP_32BIT
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
# push rbx; mov eax, 61 (chroot); mov ebx, address + 64; int 0x80; pop rbx; ret
code = b"\\x53\\xb8\\x3d\\0\\0\\0\\xbb" + (address + 64).to_bytes(4, "little") + b"\\xcd\\x80\\x5b\\xc3"
page[: len(code)] = code
page[64:66] = b"/\\0"
ctypes.CFUNCTYPE(ctypes.c_int)(address)()
"""


def test_a_32_bit_call_is_named_and_noted(tmp_path: Path) -> None:
    found, _ = run_and_trace(tmp_path, sys.executable, "-c", THIRTY_TWO_BIT)
    if found.exit_code == -signal.SIGSEGV:
        pytest.skip("this kernel makes no 32-bit calls")
    assert found.exit_code == 0
    (chroot,) = calls(found, "chroot")
    assert "SYS_CHROOT" in {check.capability for check in chroot.checks}
    assert [raw.number for raw in found.raw_calls if raw.name == "chroot"] == [161]  # as a filter is asked
    assert any("32-bit" in note for note in found.notes)


IO_URING = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
parameters = (ctypes.c_uint32 * 30)()
parameters[2] = 2  # IORING_SETUP_SQPOLL: a kernel thread at once
fd = libc.syscall(425, 8, parameters)
assert fd >= 0, os.strerror(ctypes.get_errno())
"""


def test_io_uring_loses_nothing(tmp_path: Path) -> None:
    found, run = run_and_trace(tmp_path, sys.executable, "-c", IO_URING)
    if found.exit_code:
        pytest.skip(f"no io_uring here: {run.output!r}")
    assert calls(found, "io_uring_setup")
    assert found.losses == {}


def test_a_note_names_every_program_that_it_holds_for_in_one_line(tmp_path: Path) -> None:
    trace_me = "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)"  # PTRACE_TRACEME
    copies = [f"cp {Path(sys.executable).resolve()} {tmp_path}/copy{n}" for n in range(2)]
    runs = [f"{tmp_path}/copy{n} -c '{trace_me}'" for n in (0, 1, 0)]
    script = "\n".join((*copies, f"export PYTHONHOME={sys.base_prefix}", *runs))
    found, _ = run_and_trace(tmp_path, "sh", "-ec", script)
    assert found.exit_code == 0
    (note,) = [note for note in found.notes if "traced by" in note]
    assert note == f"other processes are traced by {tmp_path}/copy0, {tmp_path}/copy1"
