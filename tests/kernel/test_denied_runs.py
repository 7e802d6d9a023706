"""Denied runs of real programs in the embedded sandbox: what is refused is given, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from program import Running, processes

from profiler import pipeline
from profiler.harness.native.sandbox import NativeSandbox
from profiler.model import Capability, Doubt, Recipe, Trace
from profiler.options import Options, Prove, Tracer
from profiler.tracer.denial.denial import Denying
from profiler.tracer.denial.denier import NotDeniableError
from profiler.tracer.session import trace
from profiler.understanding import Understanding

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]
SECONDS = 60.0  # a deadline, far above what anything takes
PRELUDE = """
import ctypes, os, socket, struct, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    result = libc.syscall(number, *args)
    if result < 0: raise OSError(ctypes.get_errno(), number)
    return result
"""


def sandbox_of(directory: Path, *argv: str) -> contextlib.closing[NativeSandbox]:
    for above in (directory, *directory.parents[:2]):
        above.chmod(0o755)
    return closing(NativeSandbox(argv, cwd=str(directory), env={"PATH": os.environ["PATH"], "HOME": "/root"}))


def denied(directory: Path, *argv: str, granted: frozenset[str] = frozenset()) -> Trace:
    with sandbox_of(directory, *argv) as sandbox:
        denying = Denying(granted, sandbox.facts().grantable)
        return trace(sandbox.start(sandbox.broad(), quiet=True), timeout=SECONDS, denying=denying)


def program(directory: Path, code: str, granted: frozenset[str] = frozenset()) -> Trace:
    return denied(directory, "/usr/bin/python3", "-c", PRELUDE + code, granted=granted)


def given(found: Trace) -> list[str]:
    assert found.denial is not None
    assert found.exit_code == 0
    assert not found.losses
    return [refusal.capability for refusal in found.denial.refusals]


def test_one_run_finds_all_that_a_program_is_refused_in_turn(tmp_path: Path) -> None:
    found = program(
        tmp_path,
        "open('f', 'w'); os.chown('f', 1000, 1000); os.chroot('/'); socket.sethostname('x'); os.nice(-5); os.setuid(7)",
    )
    assert given(found) == ["CHOWN", "SYS_CHROOT", "SYS_ADMIN", "SYS_NICE", "SETUID"]
    refusal = found.denial.refusals[0]
    assert refusal.observation.call == "chown"
    assert refusal.observation.path == str(tmp_path / "f")
    assert refusal.observation.result == -1
    assert refusal.again == 0
    assert refusal.observation.process.exe.startswith("/usr/bin/python3")


def test_what_is_granted_from_the_beginning_is_not_refused(tmp_path: Path) -> None:
    assert given(program(tmp_path, "os.chroot('/'); os.nice(-5)", frozenset({"SYS_CHROOT"}))) == ["SYS_NICE"]


def test_threads_have_sets_of_their_own(tmp_path: Path) -> None:
    code = """
errors = []
def work(what):
    try: [what() for _ in range(20)]
    except OSError as error: errors.append(error)
threads = [threading.Thread(target=work, args=[w]) for w in (lambda: os.chroot('/'), lambda: os.setpriority(0, 0, -1))]
[t.start() for t in threads]; [t.join() for t in threads]; sys.exit(len(errors))
"""
    assert sorted(given(program(tmp_path, code))) == ["SYS_CHROOT", "SYS_NICE"]


def test_a_thread_that_executes_takes_the_first_ones_place(tmp_path: Path) -> None:
    code = "t = threading.Thread(target=os.execvp, args=['chown', ['chown', '7', '.']]); t.start(); t.join()"
    assert given(program(tmp_path, code)) == ["CHOWN"]


def test_who_becomes_root_again_has_what_root_has(tmp_path: Path) -> None:
    found = program(tmp_path, "os.seteuid(1000); os.seteuid(0); os.chroot('/')")
    assert given(found) == ["SETUID", "SYS_CHROOT"]


def test_who_is_not_root_is_given_nothing(tmp_path: Path) -> None:
    code = """
os.setresuid(1000, 1000, 1000)
try: os.chroot('/')
except PermissionError: sys.exit(0)
sys.exit(1)
"""
    assert given(program(tmp_path, code)) == ["SETUID"]


def test_a_set_user_id_program_has_what_root_has(tmp_path: Path) -> None:
    code = """
import shutil
shutil.copy(shutil.which('chown'), 'own'); os.chmod('own', 0o4755); open('f', 'w')
sys.exit(subprocess.run(['./own', '7', 'f'], user=1000).returncode)
"""
    assert given(program(tmp_path, code)) == ["SETUID", "CHOWN"]


def test_a_program_that_reads_its_own_sets_is_told_what_it_would_have(tmp_path: Path) -> None:
    code = """
def sets():
    data = ctypes.create_string_buffer(24); call(125, struct.pack('Ii', 0x20080522, 0), data)
    return struct.unpack('6I', data.raw)
assert sets()[0] >> 18 & 1, 'no SYS_CHROOT'
os.chroot('/')
"""
    assert given(program(tmp_path, code)) == ["SYS_CHROOT"]


def test_what_a_program_gives_up_itself_it_is_not_given_again(tmp_path: Path) -> None:
    code = """
data = ctypes.create_string_buffer(24); head = struct.pack('Ii', 0x20080522, 0); call(125, head, data)
sets = list(struct.unpack('6I', data.raw)); sets[0] &= ~(1 << 18); sets[1] &= ~(1 << 18)
call(126, head, struct.pack('6I', *sets))
try: os.chroot('/')
except PermissionError: os.nice(-1); sys.exit(0)
sys.exit(1)
"""
    assert given(program(tmp_path, code)) == ["SYS_NICE"]


def test_a_list_that_a_program_sets_is_given_although_no_check_refuses_it(tmp_path: Path) -> None:
    code = """
call(126, struct.pack('Ii', 0x20080522, 0), struct.pack('6I', 0, 1 << 5 | 1 << 13, 0, 0, 0, 0))
"""
    assert given(program(tmp_path, code)) == ["KILL", "NET_RAW"]


def test_what_netlink_answers_in_a_message_is_granted_and_seen(tmp_path: Path) -> None:
    found = denied(tmp_path, "ip", "link", "set", "lo", "mtu", "1400")
    assert given(found) == []
    asked = {check.capability for one in found.observations for check in one.checks if check.granted}
    assert "NET_ADMIN" in asked


def test_a_failure_that_no_capability_mends_gives_nothing(tmp_path: Path) -> None:
    code = """
try: os.mknod('/proc/none', 0o600 | 0o020000, 0x101)
except OSError: sys.exit(0)
"""
    assert given(program(tmp_path, code)) == []


def test_of_two_that_stand_in_for_each_other_the_one_that_helped_is_given(tmp_path: Path) -> None:
    code = "os.mkdir('d', 0o755); os.chown('d', 1000, 1000); open('d/f', 'w')"
    assert given(program(tmp_path, code)) == ["CHOWN", "DAC_OVERRIDE"]
    code = "os.mkdir('d', 0o755); os.chown('d', 1000, 1000); os.chmod('d', 0); os.listdir('d')"
    assert given(program(tmp_path, code)) == ["CHOWN", "FOWNER", "DAC_READ_SEARCH"]


def test_two_that_are_needed_together_are_both_given(tmp_path: Path) -> None:
    assert given(program(tmp_path, "call(308, os.open('/proc/self/ns/mnt', 0), 0)")) == ["SYS_ADMIN", "SYS_CHROOT"]


def test_in_a_user_namespace_of_its_own_a_process_is_left_alone(tmp_path: Path) -> None:
    words = ("unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "t", "/mnt")
    assert given(denied(tmp_path, *words)) == []


def test_processes_of_one_user_read_of_each_other_without_a_capability(tmp_path: Path) -> None:
    code = """
child = subprocess.Popen(['sleep', '60'])
assert os.listdir(f'/proc/{child.pid}/fd'); child.kill(); child.wait()
"""
    assert given(program(tmp_path, code)) == []


def test_a_call_that_a_signal_breaks_off_goes_on(tmp_path: Path) -> None:
    code = """
import signal, time
signal.signal(signal.SIGALRM, lambda *_: os.chroot('/'))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
r, w = os.pipe(); t = threading.Timer(0.3, os.write, [w, b'x']); t.start(); os.read(r, 1)
signal.setitimer(signal.ITIMER_REAL, 0); t.join()
"""
    assert given(program(tmp_path, code)) == ["SYS_CHROOT"]


def test_job_control_stops_and_goes_on(tmp_path: Path) -> None:
    code = """
import signal
child = subprocess.Popen(['sleep', '60']); os.kill(child.pid, signal.SIGSTOP)
assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1]); os.kill(child.pid, signal.SIGCONT)
assert os.WIFCONTINUED(os.waitpid(child.pid, os.WCONTINUED)[1]); child.kill(); child.wait()
"""
    assert given(program(tmp_path, code)) == []


@pytest.mark.parametrize("words", [("strace", "-o", "/dev/null", "true"), ("gdb", "-batch", "-ex", "run", "true")])
def test_what_traces_itself_cannot_be_denied(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(NotDeniableError, match="traces processes itself"):
        denied(tmp_path, *words)


def test_a_run_that_does_not_end_in_time_is_ended_with_all_that_it_made(tmp_path: Path) -> None:
    with sandbox_of(tmp_path, "sh", "-c", "sleep 600 & sleep 600") as sandbox:
        denying = Denying(frozenset(), sandbox.facts().grantable)
        found = trace(sandbox.start(sandbox.broad(), quiet=True), timeout=0.5, denying=denying)
    assert found.losses["timeout"] == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_and_all_that_it_made(number: signal.Signals, wait_until: Callable[..., object]) -> None:
    mark = f"600.{os.getpid()}{number}"
    with Running("run", "--tracer", "deny", "--", "sh", "-c", f"sleep {mark} & echo started; sleep {mark}") as running:
        running.until("started")
        running.send(number)
        if number != signal.SIGKILL:
            assert running.end() == 128 + number
            assert running.left() == []
    wait_until(lambda: not processes(mark), 20.0)


def test_a_program_that_cannot_be_executed_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="not found"):
        denied(tmp_path, "no-such-program")


def profiled(directory: Path, options: Options, *argv: str) -> tuple[list[str], list[str], int]:
    """The recipe, what was said, and how many reruns it took."""
    said: list[str] = []
    with sandbox_of(directory, *argv) as sandbox:
        report = pipeline.profile(sandbox, options, said.append)
    assert report.verdict.verified
    assert report.verdict.minimal
    return sorted(member.label for member in report.verdict.recipe), said, len(report.verdict.runs)


def test_the_tracer_that_denies_finds_the_recipe(tmp_path: Path) -> None:
    options = Options(prove=Prove.ALL, tracer=Tracer.DENY)
    recipe, said, runs = profiled(tmp_path, options, "chroot", "/", "true")
    assert (recipe, runs) == (["SYS_CHROOT"], 2)
    assert not any("every privilege" in line for line in said)


def test_the_tracer_that_denies_tries_again_with_what_no_result_showed(tmp_path: Path) -> None:
    """Without FSETID the set-group-ID bit is left out, and chmod(2) says nothing."""
    code = """
import os, sys
open('f', 'w'); os.chown('f', -1, 7); os.chmod('f', 0o2755); sys.exit(os.stat('f').st_mode & 0o2000 == 0)
"""
    options = Options(prove=Prove.ALL, tracer=Tracer.DENY)
    recipe, said, _ = profiled(tmp_path, options, "/usr/bin/python3", "-c", code)
    assert recipe == ["CHOWN", "FSETID"]
    assert not any("every privilege" in line for line in said)


def test_the_tracer_that_denies_gives_way_where_it_cannot_be_used(tmp_path: Path) -> None:
    options = Options(prove=Prove.ALL, tracer=Tracer.DENY)
    recipe, said, _ = profiled(tmp_path, options, "strace", "-o", "/dev/null", "true")
    assert recipe == []
    assert any("traces processes itself" in line for line in said)


class Unsure(Understanding):
    """Takes everything for doubtful, as where no rule tells what a trace shows."""

    def recipe(self, up_to: Doubt) -> Recipe:
        names = () if up_to < Doubt.DOUBTFUL else ("CHOWN", "FOWNER", "KILL", "MKNOD", "SYS_CHROOT", "SYS_NICE")
        return frozenset(map(Capability, names))


def test_a_recipe_that_fails_is_completed_by_one_denied_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "Understanding", Unsure)
    words = ("/usr/bin/python3", "-c", "import os; os.chroot('/'); os.nice(-1)")
    recipe, said, runs = profiled(tmp_path, Options(prove=Prove.ALL), *words)
    assert recipe == ["SYS_CHROOT", "SYS_NICE"]
    assert any(line.startswith("it was refused SYS_CHROOT SYS_NICE (") for line in said)
    assert runs == 4  # without any, with both, and without each
