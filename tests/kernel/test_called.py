"""Which system calls were made: each once, of threads and children too, whatever their number, and nobody else's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_session import run_and_trace

from profiler.kernel import gate
from profiler.model import Called
from profiler.witness import recording
from profiler.witness.called import CallWitness
from profiler.witness.recording import ENTER, Recording

pytestmark = pytest.mark.kernel

SCRIPT = """
import os, threading
def thread():
    os.getpriority(os.PRIO_PROCESS, 0)
    if os.fork() == 0:
        os.getsid(0)
        os._exit(0)
    os.wait()
one = threading.Thread(target=thread)
one.start()
one.join()
for _ in range(200_000):
    os.getppid()
os.sched_yield()
"""


def called(*argv: str) -> Called:
    """What a child calls that executes `argv` once it is watched."""
    child = subprocess.Popen(["sh", "-c", 'read go; exec "$@"', "sh", *argv], stdin=subprocess.PIPE)
    assert child.stdin is not None
    with CallWitness() as witness:
        witness.start(child.pid, "/bin/sh")
        child.communicate(b"\n")
        return witness.finish()


def test_every_call_is_seen_whatever_their_number():
    found = called(sys.executable, "-c", SCRIPT)
    assert found.lost == 0
    assert not found.foreign
    assert {"execve", "getpriority", "getsid", "getppid", "sched_yield", "exit_group"} <= found.programs.keys()
    assert not {"sync", "mount", "getpgid"} & found.programs.keys()
    assert found.programs["getsid"].endswith(Path(sys.executable).name)  # inherited from a thread's parent
    assert found.programs["execve"] == "/bin/sh"


def test_nobody_elses_calls_are_seen():
    with CallWitness() as witness, subprocess.Popen(["sleep", "60"]) as child:
        witness.start(child.pid, "sleep")
        subprocess.run(["sync", "--version"], check=True, capture_output=True)
        subprocess.run([sys.executable, "-c", "import os; os.getpgid(0)"], check=True)
        child.kill()
        child.wait()
        assert "getpgid" not in witness.finish().programs


def test_strace_sees_no_other_calls(tmp_path):
    log = tmp_path / "log"
    command = ("sh", "-c", "ls -l /etc > /dev/null; id > /dev/null; mkdir -p /tmp")
    subprocess.run(["strace", "-f", "-qq", "-o", str(log), *command], check=True)
    lines = (line.split(maxsplit=1)[1] for line in log.read_text().splitlines())
    straced = {line.partition("(")[0] for line in lines if line[0].isalpha()}
    assert straced <= called(*command).programs.keys()


def test_what_overflows_the_buffer_is_counted():
    with Recording(ENTER, buffer_kib=64) as narrow:
        child = subprocess.Popen(["sh", "-c", "read go; exec dd if=/dev/zero of=/dev/null bs=1 count=50000"],
                                 stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
        narrow.start((child.pid,))
        child.communicate(b"\n")
        narrow.stop()
        assert narrow.lost() > 0


CALL_64 = b"\x31\xff\xb0\xe7\x0f\x05"  # xor edi,edi; mov al,231 (exit_group); syscall
CALL_32 = b"\x31\xdb\xb0\x01\xcd\x80"  # xor ebx,ebx; mov al,1 (i386: exit, x86-64: write); int 0x80


def program_of(path, code):
    """A program of this code alone: its gate was made to call mmap, seccomp and more before it."""
    head = bytearray(gate.gate_elf()[: -len(gate._CODE)])
    path.write_bytes(bytes(head) + code.ljust(len(gate._CODE), b"\x90"))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("code", "native", "i386"), [(CALL_64, {"exit_group"}, set()), (CALL_32, set(), {"exit"})])
def test_what_steering_calls_does_not_count_and_each_table_has_its_names(tmp_path, code, native, i386):
    program = program_of(tmp_path / "program", code)
    found, _ = run_and_trace(tmp_path, program, every_call=True)
    if found.exit_code != 0:
        pytest.skip("this kernel has no 32-bit calls")
    assert found.called == Called(dict.fromkeys(native, program), i386=dict.fromkeys(i386, program))


def test_one_number_is_told_apart_by_its_table(tmp_path):
    """getpid(2) of i386 is writev(2) of x86-64, again and again, with and without the other."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text("""
        #include <sys/uio.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            for (int i = 0; i < 5000; i++) {
                long result;
                __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
                if (result != getpid())
                    return 77;
            }
            if (argc > 1)
                writev(1, 0, 0);
            return 0;
        }
    """)
    subprocess.run([compiler, "-o", str(program), str(source)], check=True)
    found, _ = run_and_trace(tmp_path, str(program), every_call=True)
    if found.exit_code != 0:
        pytest.skip("this kernel has no 32-bit calls")
    assert found.called.i386 == {"getpid": str(program)}
    assert "writev" not in found.called.programs
    assert {"getpid", "exit_group"} <= found.called.programs.keys()
    assert found.called.lost == 0
    both, _ = run_and_trace(tmp_path, str(program), "writev", every_call=True)
    assert both.called.programs["writev"] == str(program)
    assert both.called.i386 == {"getpid": str(program)}


def test_it_costs_nothing_when_it_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(recording.Recording, "__enter__", lambda self: pytest.fail("a recording was begun"))
    found, _ = run_and_trace(tmp_path, "true")
    assert found.called is None
