"""Whatever happens to a run of the embedded sandbox: nothing is lost, nothing is left, and the next run works."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pace import SLOWER
from program import PROGRAM, Running, capprofile, environment, processes, shell

from profiler.leftovers import STATE, start_time

pytestmark = pytest.mark.kernel

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
ENDLESS = "echo ready; while :; do sleep 0.1; done"
STUBBORN = "trap '' INT TERM HUP; " + ENDLESS
SLOW = "chroot / true || exit 1; sleep 2"  # its reruns last long enough to be interrupted


@pytest.fixture
def mark() -> str:
    """A word that only one workload has in its arguments; to sleep(1) it is some twenty minutes."""
    return f"1234.{uuid.uuid4().int}"[:30]


@pytest.fixture
def built(tmp_path: Path) -> Iterator[object]:
    """Compiles a C program; skips without a compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")

    def build(source: str) -> str:
        code, program = tmp_path / "program.c", tmp_path / "program"
        code.write_text(textwrap.dedent(source))
        subprocess.run([compiler, "-o", str(program), str(code), "-pthread"], check=True)
        return str(program)

    yield build


# Signals


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ordinary_command_is_broken_off(number: signal.Signals, mark: str) -> None:
    with Running("run", *shell(f"echo ready; exec sleep {mark}")) as run:
        run.until("ready")
        run.send(number)
        assert run.end() == 128 + number
        assert run.text.rstrip().endswith(f"capprofile: stopped by {number.name}")
        assert run.left() == []
        assert processes(mark) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_workload_begins(number: signal.Signals, mark: str) -> None:
    with Running("run", *shell(f"{STUBBORN} # {mark}")) as run:
        run.until("tracing")
        run.send(number)
        assert run.end() == 128 + number
        assert "ready" not in run.text or number is not signal.SIGINT
        assert run.left() == []
        assert processes(mark) == []


@pytest.mark.parametrize("phase", ["tracing", "verify: "])
@pytest.mark.parametrize("number", SIGNALS)
def test_during_a_rerun_and_during_a_removal(number: signal.Signals, phase: str, mark: str) -> None:
    with Running("run", "--jobs", "2", *shell(f"chown 1 . ; {SLOW}; chown 0 . # {mark}")) as run:
        run.until(phase)
        if phase == "tracing":  # the traced run's end is not told: its sandbox's files go away
            end = time.monotonic() + 30
            while processes(mark) or not any("instances" in name for name in run.left()):
                assert time.monotonic() < end
                if any("-0-" in name for name in run.left()) and not any("instances" in name for name in run.left()):
                    break
                time.sleep(0.02)
        run.send(number)
        began = time.monotonic()
        assert run.end() in (128 + number, 0)
        assert time.monotonic() - began < 30
        assert run.left() == []
        assert processes(mark) == []


def test_the_first_interruption_ends_a_service_and_goes_on_to_its_recipe() -> None:
    with Running("run", *shell(f"trap 'echo stopped; exit 0' TERM; chroot / true || exit 9; {ENDLESS}")) as run:
        run.until("ready")
        run.send(signal.SIGINT)
        assert run.end() == 0, run.text
        assert run.text.count("stopped\n") == 1
        assert "going on to the reruns" in run.text
        assert "SYS_CHROOT" in run.text
        assert "verified" in run.text
        assert run.left() == []


def test_a_workload_that_knows_interruptions_gets_one() -> None:
    with Running("run", *shell(f"trap 'echo interrupted; exit 3' INT; {ENDLESS}")) as run:
        run.until("ready")
        run.send(signal.SIGINT)
        assert run.end() == 0, run.text
        assert run.text.count("interrupted\n") == 1


def test_the_second_interruption_ends_the_program() -> None:
    with Running("run", *shell(STUBBORN)) as run:
        run.until("ready")
        run.send(signal.SIGINT)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:  # one that follows at once is the same
            time.sleep(0.05)
        run.send(signal.SIGINT)
        assert run.end() == 128 + signal.SIGINT
        assert run.left() == []


# The program is killed


@pytest.mark.parametrize("phase", ["tracing", "ready", "verify: "])
def test_after_sigkill_the_workload_is_gone_and_the_next_run_cleans_up(phase: str, mark: str, wait_until) -> None:
    script = f"{STUBBORN} # {mark}" if phase != "verify: " else f"{SLOW} # {mark}"
    with Running("run", *shell(script)) as run:
        run.until(phase)
        run.send(signal.SIGKILL)
        assert run.end() == -signal.SIGKILL
        wait_until(lambda: not processes(mark))
        assert capprofile("run", "--", "true").returncode == 0
        wait_until(lambda: not run.left())


def test_doctor_cleans_up_too(wait_until) -> None:
    with Running("run", *shell(STUBBORN)) as run:
        run.until("ready")
        run.send(signal.SIGKILL)
        run.end()
        left = run.left()
        done = capprofile("doctor", "--clean")
        assert done.returncode == 0
        assert left
        assert all(Path(path).name in done.stdout for path in left if "instances" in path)
        wait_until(lambda: not run.left())


def test_a_killed_helper_is_told_and_cleaned_up(mark: str, wait_until) -> None:
    with Running("run", *shell(f"{STUBBORN} # {mark}")) as run:
        run.until("ready")
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text(encoding="ascii").split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert run.end() in (4, 5)
        assert "Traceback" not in run.text
        assert run.left() == []
        wait_until(lambda: not processes(mark))


# Output and terminals


def test_a_reader_of_the_workloads_output_that_leaves() -> None:
    command = " ".join([*PROGRAM, "run", "--", "yes"])
    done = subprocess.run(
        ["sh", "-c", f"{command} | head -1"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=90 * SLOWER,
    )
    assert done.stdout == "y\n"
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_a_reader_of_our_own_words_that_leaves() -> None:
    command = " ".join([*PROGRAM, "run", "--", "true"])
    done = subprocess.run(
        ["sh", "-c", f"{{ {command} 2>&1; echo $? >&2; }} | head -1"],
        env=environment(), capture_output=True, text=True, check=False, timeout=90 * SLOWER,
    )  # fmt: skip
    assert done.stdout.startswith("capprofile: ")
    assert done.stderr.strip() == str(128 + signal.SIGPIPE)


def on_a_terminal(*words: str) -> tuple[int, int]:
    """The program in a session with a terminal of its own: its pid, and the terminal's other side."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(PROGRAM[0], [*PROGRAM, *words], environment())
    return pid, terminal


def read_until(terminal: int, words: bytes) -> bytes:
    text = b""
    while words not in text:
        chunk = os.read(terminal, 4096)
        assert chunk, text
        text += chunk
    return text


def read_all(terminal: int) -> bytes:
    text = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # EIO: the last process has let go of the terminal
            return text
        if not chunk:
            return text
        text += chunk


def test_control_c_on_a_terminal_reaches_the_workload_and_ends_both(mark: str) -> None:
    pid, terminal = on_a_terminal("run", *shell(f"echo ready; exec sleep {mark}"))
    read_until(terminal, b"ready")
    os.write(terminal, b"\x03")
    text = read_all(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGINT
    assert b"stopped by SIGINT" in text
    assert processes(mark) == []
    os.close(terminal)


def test_control_c_on_a_terminal_ends_a_service() -> None:
    pid, terminal = on_a_terminal("run", *shell(f"trap 'echo in order; exit 0' INT; {ENDLESS}"))
    read_until(terminal, b"ready")
    os.write(terminal, b"\x03")
    text = read_all(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text
    assert b"in order" in text
    assert b"verified" in text
    os.close(terminal)


def test_a_terminal_that_hangs_up(mark: str, wait_until) -> None:
    pid, terminal = on_a_terminal("run", *shell(f"{STUBBORN} # {mark}"))
    read_until(terminal, b"ready")
    os.close(terminal)
    os.waitpid(pid, 0)
    wait_until(lambda: not processes(mark))
    assert not list(Path("/run/capprofile").glob(f"capprofile-{pid}-*"))


def test_the_terminal_is_ours_again_afterwards() -> None:
    """A shell that starts the program must be able to go on reading its terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        command = " ".join([*PROGRAM, "run", "--quiet", "--", "true", "2>/dev/null"])
        os.execve("/bin/sh", ["sh", "-c", f"{command}; read line && echo got $line"], environment())
    os.write(terminal, b"words\n")
    assert b"got words" in read_all(terminal)
    os.waitpid(pid, 0)
    os.close(terminal)


# Workloads that are hard to hold


def test_a_workload_that_leaves_daemons(mark: str) -> None:
    script = f"for i in 1 2 3; do setsid sh -c 'sleep 1000 # {mark}' & done; echo done"
    done = capprofile("run", *shell(script))
    assert done.returncode == 0, done.stderr
    assert processes(mark) == []


def test_a_workload_that_kills_all_it_can(mark: str) -> None:
    done = capprofile("run", *shell(f"sleep 1000 & kill -9 -1; echo alone # {mark}"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alone\n"
    assert processes(mark) == []


def test_a_workload_that_stops_itself_goes_on_when_it_is_told(mark: str, wait_until) -> None:
    with Running("run", *shell(f"echo ready; kill -STOP $$; echo went on # {mark}")) as run:
        run.until("ready")
        (pid,) = wait_until(lambda: [p for p in processes(mark) if state(p) in "Tt"][:1])
        os.kill(pid, signal.SIGCONT)
        # Its reruns stop too, and nobody wakes those: they are ended at their limit.
        run.until("went on")
        run.send(signal.SIGTERM)
        assert run.end() == 128 + signal.SIGTERM
        assert run.left() == []
        assert processes(mark) == []


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_a_stopped_workload_ends_with_the_program(mark: str) -> None:
    with Running("run", *shell(f"echo ready; kill -STOP $$ # {mark}")) as run:
        run.until("ready")
        run.send(signal.SIGTERM)
        assert run.end() == 128 + signal.SIGTERM
        assert processes(mark) == []


def test_a_time_limit_ends_what_ignores_every_signal(mark: str) -> None:
    done = capprofile("run", "--timeout", "1s", *shell(f"{STUBBORN} # {mark}"))
    assert done.returncode == 4, done.stderr
    assert processes(mark) == []


def test_zombies_do_not_disturb() -> None:
    script = "i=0; while [ $i -lt 300 ]; do true & i=$((i+1)); done; exec sleep 0.2"  # nobody waits for them
    done = capprofile("run", *shell(script))
    assert done.returncode == 0, done.stderr


def test_another_thread_executes(built) -> None:
    program = built("""
        #include <pthread.h>
        #include <unistd.h>
        static char **words;
        static void *other(void *argument) {
            if (words[1][1])  /* once again, with one letter less */
                execl(words[0], words[0], words[1] + 1, (char *) 0);
            execl("/bin/sh", "sh", "-c", "chroot / true && echo executed", (char *) 0);
            return argument;
        }
        int main(int count, char **given) {
            pthread_t thread;
            words = given;
            pthread_create(&thread, 0, other, 0);
            pause();
            return count;
        }
    """)
    done = capprofile("run", "--", program, "x" * 30)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "executed\n"
    assert "SYS_CHROOT" in done.stderr


def test_calls_of_32_bits(built) -> None:
    program = built("""
        int main(void) {
            long result;
            __asm__ volatile("int $0x80" : "=a"(result) : "a"(61), "b"("/") : "memory");  /* chroot of i386 */
            return result == 0 ? 0 : 1;
        }
    """)
    done = capprofile("run", "--", program)
    assert done.returncode in (0, 4), done.stderr  # 4: a kernel without CONFIG_IA32_EMULATION, or an address too high
    assert "internal error" not in done.stderr


@pytest.mark.parametrize("tracer", [("strace", "-f", "-o", "/dev/null"), ("gdb", "-q", "-batch", "-ex", "run")])
def test_a_tracer_inside(tracer: tuple[str, ...]) -> None:
    if shutil.which(tracer[0]) is None:
        pytest.skip(f"needs {tracer[0]}")
    done = capprofile("run", "--", *tracer, "/bin/true")
    assert done.returncode == 0, done.stderr


# The state directories are full


def test_no_room_for_state(tmp_path: Path) -> None:
    """In a mount namespace of its own, where the places for state are full."""
    script = textwrap.dedent("""
        set -e
        mkdir -p /run/capprofile /var/lib/capprofile
        for place in /run/capprofile /var/lib/capprofile; do
            mount -t tmpfs -o size=4k,nr_inodes=2 none $place
        done
        trap 'umount /run/capprofile /var/lib/capprofile; rmdir /var/lib/capprofile /run/capprofile || true' EXIT
        "$@"
    """)
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *PROGRAM, "run", "--", "true"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=90 * SLOWER)
    assert "internal error" not in done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode != 0:
        assert done.returncode == 3, done.stderr
        assert "\n  hint: " in done.stderr


def test_a_full_place_for_the_manifest(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=4k none "$0" && head -c 4096 /dev/zero > "$0/full"; exec "$@"'
    target = tmp_path / "full"
    target.mkdir()
    words = ["unshare", "--mount", "sh", "-c", script, str(target), *PROGRAM, "run", "-o", str(target / "m.json")]
    done = subprocess.run(
        [*words, "--", "true"], env=environment(), capture_output=True, text=True, check=False, timeout=90 * SLOWER
    )
    assert done.returncode in (2, 3), done.stderr
    assert "internal error" not in done.stderr
    assert "m.json" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pid", "--fork", "--mount-proc"), ("run", "--", "true")),
        (("--pid", "--fork"), ("run", "--", "true")),
        (("--pid",), ("run", "--", "true")),  # what it forks would be in another namespace
        (("--pid", "--fork", "--mount-proc"), ("doctor", "--clean")),
        (("--pid", "--fork", "--mount-proc"), ("doctor",)),
    ],
)
def test_another_pid_namespace_is_told_and_nobodys_things_are_touched(options, words):
    tag = f"capprofile-{os.getpid()}-{start_time(os.getpid())}-other"  # of a process that cannot be seen from there
    (STATE / tag).mkdir(parents=True)
    try:
        done = subprocess.run(["unshare", *options, *PROGRAM, *words], capture_output=True, text=True, check=False)
        assert (STATE / tag).is_dir()
    finally:
        (STATE / tag).rmdir()
    assert done.returncode == 3
    said = done.stdout + done.stderr
    assert "PID namespace of its own" in said
    assert "run capprofile outside of it" in said
