"""Whatever happens to a run in Docker: no container stays, the engine stays usable, and the next run cleans up."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from program import PROGRAM, Running, capprofile, environment, processes

from profiler.leftovers import start_time

pytestmark = pytest.mark.engine

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
ENDLESS = "echo ready; while :; do sleep 0.1; done"
STUBBORN = "trap '' INT TERM HUP; " + ENDLESS
SLOW = "chroot / true || exit 1; sleep 3"


@pytest.fixture
def mark() -> str:
    """A word that only one workload has in its arguments; to sleep(1) it is some twenty minutes."""
    return f"1234.{uuid.uuid4().int}"[:30]


def in_docker(image: str, script: str, *flags: str) -> tuple[str, ...]:
    return ("run", "--", "docker", "run", "--rm", "--privileged", *flags, image, "sh", "-c", script)


# Signals and kills, at each phase


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("flags", [(), ("--init",)], ids=["plain", "init"])
def test_an_ordinary_command_is_broken_off(
    busybox_image: str, number: signal.Signals, flags: tuple[str, ...], mark: str
) -> None:
    if number is signal.SIGINT and not flags:
        pytest.skip("the first process of a container takes no signal without a handler: Docker's own Ctrl-C too")
    with Running(*in_docker(busybox_image, f"echo ready; exec sleep {mark}", *flags)) as run:
        run.until("ready")
        run.send(number)
        assert run.end() == 128 + number
        assert run.left() == []
        assert processes(mark) == []


@pytest.mark.parametrize("phase", ["not granted", "tracing", "ready", "verify: "])
def test_a_signal_at_any_phase_leaves_nothing(busybox_image: str, phase: str, mark: str) -> None:
    script = f"{SLOW} # {mark}" if phase == "verify: " else f"{STUBBORN} # {mark}"
    with Running(*in_docker(busybox_image, script)) as run:
        run.until(phase)
        run.send(signal.SIGTERM)
        assert run.end() == 128 + signal.SIGTERM
        assert run.left() == []
        assert processes(mark) == []


@pytest.mark.parametrize("phase", ["not granted", "tracing", "ready", "verify: "])
def test_after_sigkill_the_next_run_cleans_up(
    busybox_image: str, phase: str, mark: str, wait_until: Callable[..., object]
) -> None:
    script = f"{SLOW} # {mark}" if phase == "verify: " else f"{STUBBORN} # {mark}"
    with Running(*in_docker(busybox_image, script)) as run:
        run.until(phase)
        run.send(signal.SIGKILL)
        run.end()
        if phase == "ready":  # its first process has died with the tracer, and the container with that
            wait_until(lambda: not processes(mark))
        done = capprofile("run", "--", "docker", "run", "--rm", busybox_image, "true")
        assert done.returncode == 0, done.stderr
        assert "removed" not in done.stderr
        wait_until(lambda: not run.left())
        assert processes(mark) == []


def test_doctor_cleans_up_too(busybox_image: str, wait_until: Callable[..., object]) -> None:
    with Running(*in_docker(busybox_image, STUBBORN)) as run:
        run.until("ready")
        run.send(signal.SIGKILL)
        run.end()
        done = capprofile("doctor", "--clean")
        assert done.returncode == 0
        assert "container " in done.stdout
        wait_until(lambda: not run.left())


def test_the_first_interruption_ends_a_service_and_goes_on_to_its_recipe(busybox_image: str) -> None:
    script = f"trap 'echo stopped; exit 0' TERM; chroot / true || exit 9; {ENDLESS}"
    with Running(*in_docker(busybox_image, script)) as run:
        run.until("ready")
        run.send(signal.SIGINT)
        assert run.end() == 0, run.text
        assert run.text.count("stopped\n") == 1
        assert "verified" in run.text
        assert run.left() == []


# Kinds of containers


@pytest.mark.parametrize(
    "flags",
    [
        ("--init",),
        ("--pid=host",),
        ("--user", "nobody"),
        ("--read-only",),
        ("-d",),
        ("-i",),
        ("-it",),
        ("-t",),
        ("-v", "/data"),
        ("-w", "/made/for/it"),
        ("--health-cmd", "true", "--health-interval", "1s"),
        ("--entrypoint", "/bin/busybox"),
        ("--restart", "always"),
    ],
    ids=" ".join,
)
def test_every_kind_of_container_leaves_nothing(busybox_image: str, flags: tuple[str, ...]) -> None:
    words = ("sh", "-c", "echo it ran; test -r /proc/self/status")
    kept = () if "--restart" in flags else ("--rm",)
    before = volumes()
    with Running("run", "--", "docker", "run", *kept, *flags, busybox_image, *words) as run:
        assert run.end() == 0, run.text
        assert "it ran" in run.text
        assert run.left() == []
    assert volumes() <= before | others_volumes()


def volumes() -> set[str]:
    return set(
        subprocess.run(("docker", "volume", "ls", "-q"), check=True, capture_output=True).stdout.decode().split()
    )


def others_volumes() -> set[str]:
    """Volumes that a container of another session uses."""
    listing = subprocess.run(
        ("docker", "ps", "-a", "--no-trunc", "--format", "{{.Mounts}}"), check=True, capture_output=True
    )
    return {name for line in listing.stdout.decode().split() for name in line.split(",")}


def test_a_name_is_free_again(busybox_image: str) -> None:
    name = f"robust-{os.getpid()}"
    script = "chroot / true && echo it ran"
    for _ in range(2):
        with Running(*in_docker(busybox_image, script, "--name", name)) as run:
            assert run.end() == 0, run.text
    assert not subprocess.run(
        ("docker", "ps", "-aq", "--filter", f"name={name}"), check=True, capture_output=True
    ).stdout


def test_what_an_images_configuration_says(busybox_image: str) -> None:
    tag = f"capprofile-robust-{os.getpid()}"
    lines = [
        f"FROM {busybox_image}",
        "VOLUME /data",
        "WORKDIR /somewhere",
        "HEALTHCHECK --interval=1s CMD true",
        "USER nobody",
        'ENTRYPOINT ["sh", "-c"]',
        'CMD ["id -u; pwd; test -w /data || echo not mine"]',
    ]
    subprocess.run(
        ("docker", "build", "--quiet", "--network=none", "--tag", tag, "-"),
        input="\n".join(lines).encode(), check=True, capture_output=True, env={**os.environ, "DOCKER_BUILDKIT": "0"},
    )  # fmt: skip
    try:
        with Running("run", "--", "docker", "run", "--rm", "--privileged", tag) as run:
            assert run.end() == 0, run.text
            assert "65534\n/somewhere\nnot mine\n" in run.text
            assert run.left() == []
    finally:
        subprocess.run(("docker", "image", "rm", tag), check=False, capture_output=True)


def test_with_the_hosts_processes_all_of_the_workload_ends_with_the_program(
    busybox_image: str, mark: str, wait_until: Callable[..., object]
) -> None:
    """Nothing of a pid namespace ends the others there: the engine must."""
    script = f"sleep {mark} & sleep {mark} & {ENDLESS}"
    with Running(*in_docker(busybox_image, script, "--pid=host")) as run:
        run.until("ready")
        run.send(signal.SIGKILL)
        run.end()
        wait_until(lambda: not processes(mark))
        capprofile("doctor", "--clean")
        assert run.left() == []


def test_a_workload_that_kills_all_it_can_and_leaves_daemons(busybox_image: str, mark: str) -> None:
    script = f"setsid sleep {mark} & kill -9 -1; setsid sleep {mark} & echo alone"
    with Running(*in_docker(busybox_image, script)) as run:
        assert run.end() == 0, run.text
        assert "alone" in run.text
        assert processes(mark) == []
        assert run.left() == []


def test_a_time_limit(busybox_image: str, mark: str) -> None:
    with Running("run", "--timeout", "2s", *in_docker(busybox_image, f"{STUBBORN} # {mark}")[1:]) as run:
        assert run.end() == 4, run.text
        assert run.left() == []
        assert processes(mark) == []


# Terminals


def test_control_c_typed_into_a_containers_terminal(busybox_image: str) -> None:
    words = ["docker", "run", "--rm", "-it", "--privileged", busybox_image, "sh", "-c"]
    pid, terminal = pty.fork()
    if pid == 0:
        script = f"trap 'echo in order; exit 0' INT; {ENDLESS}"
        os.execve(PROGRAM[0], [*PROGRAM, "run", "--", *words, script], environment())
    text = b""
    while b"ready" not in text:
        text += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # EIO: the last process has let go of the terminal
        while chunk := os.read(terminal, 4096):
            text += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text
    assert b"in order" in text
    os.close(terminal)


# The engine goes away


class Engine:
    """An engine of our own beside the one that is there, on a socket of its own.

    It must have a network namespace of its own too: an engine that shall have no bridge removes docker0, whosesoever
    it is (removeDefaultBridgeInterface in moby's daemon_unix.go).
    """

    def __init__(self, directory: Path) -> None:
        self.host = f"unix://{directory}/socket"
        self._log = (directory / "log").open("wb")
        self._directory = directory
        self.process = subprocess.Popen(
            (
                "unshare", "--net", "dockerd", "--host", self.host, "--data-root", str(directory / "data"),
                "--exec-root", str(directory / "exec"), "--pidfile", str(directory / "pid"),
                "--bridge=none", "--iptables=false", "--ip-masq=false", "--ip-forward=false",
            ),
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, process_group=0,
        )  # fmt: skip

    def docker(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(("docker", "-H", self.host, *words), input=stdin, capture_output=True, check=False)

    def answers(self) -> bool:
        return self.docker("info").returncode == 0

    def end(self) -> None:
        """Kill it, then its containerd and shims (which outlive it), then take down what it mounted."""
        self.process.kill()
        self.process.wait()
        self._log.close()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self._directory).encode() in (process / "cmdline").read_bytes():
                    pid = int(process.name)
                    if pid != os.getpid() and start_time(pid) is not None:
                        os.kill(pid, signal.SIGKILL)
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        for line in reversed(mounts):
            if line.split()[4].startswith(str(self._directory)):
                subprocess.run(("umount", "--lazy", line.split()[4]), check=False)


@pytest.fixture
def second_engine(tmp_path_factory: pytest.TempPathFactory, busybox_image: str, wait_until) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("engine"))
    try:
        wait_until(lambda: engine.answers() or engine.process.poll() is not None, deadline=60)
        if engine.process.poll() is not None:
            pytest.skip("no second engine can be started here")
        saved = subprocess.run(("docker", "save", busybox_image), check=True, capture_output=True).stdout
        assert engine.docker("load", stdin=saved).returncode == 0
        yield engine
    finally:
        engine.end()


@pytest.mark.parametrize("phase", ["ready", "verify: "])
def test_an_engine_that_goes_away(
    second_engine: Engine, busybox_image: str, phase: str, mark: str, wait_until: Callable[..., object]
) -> None:
    script = f"{SLOW} # {mark}" if phase == "verify: " else f"{STUBBORN} # {mark}"
    words = ("docker", "run", "--network", "none", "--privileged", busybox_image, "sh", "-c", script)
    with Running("run", "--", *words, env=environment(DOCKER_HOST=second_engine.host)) as run:
        run.until(phase)
        second_engine.process.kill()
        assert run.end() == 3, run.text
        assert "Traceback" not in run.text
        assert "engine" in run.text.splitlines()[-2]
        assert run.text.splitlines()[-1].startswith("  hint: ")
        assert [name for name in run.left() if "cgroup" not in name] == []
        if phase == "ready":
            wait_until(lambda: not processes(mark))
