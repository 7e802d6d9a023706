"""Which system calls were made: each once, of threads and children too, whatever their number, and nobody else's."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("code", "names", "foreign"),
    [
        (b"\x31\xff\xb0\xe7\x0f\x05", {"exit_group"}, False),  # xor edi,edi; mov al,231; syscall
        (b"\x31\xdb\xb0\x01\xcd\x80", {"write"}, True),  # xor ebx,ebx; mov al,1 (i386: exit); int 0x80
    ],
)
def test_what_steering_calls_does_not_count_and_another_table_is_told(tmp_path, code, names, foreign):
    """A program of one system call: its gate was made to call mmap, seccomp and more before it."""
    program = tmp_path / "program"
    program.write_bytes(gate.gate_elf()[: -len(gate._CODE)] + code.ljust(len(gate._CODE), b"\x90"))
    program.chmod(0o755)
    found, _ = run_and_trace(tmp_path, str(program), every_call=True)
    if found.exit_code != 0:
        pytest.skip("this kernel has no 32-bit calls")
    assert found.called == Called(dict.fromkeys(names, str(program)), 0, foreign)


def test_it_costs_nothing_when_it_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(recording.Recording, "__enter__", lambda self: pytest.fail("a recording was begun"))
    found, _ = run_and_trace(tmp_path, "true")
    assert found.called is None
