"""Real containers: what a recipe grants, what is held at the gate, and that nothing is left."""

from __future__ import annotations

import io
import os
import pty
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pace import SLOWER

from profiler.errors import HostError, UsageError
from profiler.harness.docker import gate as docker_gate
from profiler.harness.docker import sandbox as docker_sandbox
from profiler.harness.docker.engine import Refused
from profiler.harness.docker.facts import engine_facts
from profiler.harness.docker.leftovers import clean_leftovers
from profiler.harness.docker.sandbox import DockerSandbox
from profiler.kernel.steer import Steered
from profiler.leftovers import LABEL, STATE, owner_tag
from profiler.model import Capability, Device, SecurityOption

pytestmark = pytest.mark.engine

IMAGE = "capprofile-harness-test"
NOTHING = frozenset()
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
    "etc/group": "root:x:0:\nalice:x:1000:\nextra:x:2000:alice,bob\nother:x:3000:\n",
    "plain": "not a program\n",
}


def docker(*words, stdin=None, check=True):
    return subprocess.run(["docker", *words], input=stdin, capture_output=True, check=check, timeout=60 * SLOWER)


@pytest.fixture(scope="module")
def image():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for applet in ("sh", "id", "cat", "sleep", "echo", "head", "yes", "mount", "mkdir", "stty", "kill"):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for name, text in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    docker("import", "-", IMAGE, stdin=archive.getvalue())
    yield IMAGE
    docker("rmi", "--force", IMAGE)


@pytest.fixture
def sandbox(image):
    made = []

    def make(*words, **options):
        made.append(DockerSandbox(("docker", "run", *words), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.close()
    assert containers() == []


def containers(tag=None):
    found = docker("ps", "-aq", "--no-trunc", "--filter", f"label={LABEL}={tag or owner_tag()}")
    return found.stdout.decode().split()


def become(run, *, hold=True):
    """What the tracer does, without any tracing: the gate becomes the workload."""
    steered = Steered.seize(run.caught.pid)
    steered.reduce(run.caught.credentials, run.caught.capabilities)
    steered.execute(run.caught.argv, run.caught.env)
    if hold:
        steered.hold()
    else:
        steered.detach()


def outcome_of_held(box, recipe=NOTHING):
    run = box.start(recipe)
    try:
        become(run)
        return run.wait()
    finally:
        run.close()


def caught(box):
    run = box.start(NOTHING)
    try:
        return run.caught
    finally:
        run.close()


# Facts


def test_what_is_said_to_be_granted_is_granted(sandbox):
    box = sandbox("--privileged", IMAGE, "cat", "/proc/self/status")
    facts = box.facts()
    assert (facts.engine, facts.engine_version != "") == ("docker", True)
    assert {"SYS_ADMIN", "CHOWN"} <= facts.grantable
    assert not facts.grantable & set(facts.not_granted)
    assert engine_facts().grantable == facts.grantable  # what doctor finds without an image
    if docker("run", "--rm", "--privileged", IMAGE, "sh", "-c", ":", check=False).returncode == 0:
        assert not facts.not_granted
    assert facts.cgroup_version in (1, 2)
    broad = box.broad()
    assert {Capability(name) for name in facts.grantable} <= broad
    assert SecurityOption("systempaths=unconfined") in broad
    outcome = box.rerun(broad, timeout=30 * SLOWER)
    assert outcome.exit_code == 0
    status = dict(line.split(":\t", 1) for line in outcome.stdout.decode().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16).bit_count() == len(facts.grantable)
    assert status["Seccomp"] == "0"


def test_nodes_that_the_workload_makes_work_in_the_broad_run(sandbox):
    script = "/bin/busybox mknod /n c 1 5 && /bin/busybox mknod /k c 1 11 && head -c 1 /n && : < /k"
    assert sandbox(IMAGE, "sh", "-c", script).rerun(sandbox(IMAGE).broad(), timeout=30 * SLOWER).exit_code == 0
    assert (
        sandbox(IMAGE, "sh", "-c", script).rerun(frozenset({Capability("MKNOD")}), timeout=30 * SLOWER).exit_code != 0
    )


def test_filter_depends_on_the_capabilities(sandbox):
    box = sandbox(IMAGE)
    without = box.filter_of(NOTHING)
    with_admin = box.filter_of(frozenset({"SYS_ADMIN"}))
    assert without is not None
    assert len(without) % 8 == 0  # struct sock_filter
    assert without != with_admin
    assert box.filter_of(NOTHING) is without


# Reruns


def test_recipe_is_exactly_what_the_rerun_has(sandbox):
    script = "mkdir /m && mount -t tmpfs none /m"
    box = sandbox("--privileged", "--cap-add", "SYS_ADMIN", IMAGE, "sh", "-c", script)
    needed = frozenset({Capability("SYS_ADMIN"), SecurityOption("apparmor=unconfined")})
    assert box.rerun(NOTHING, timeout=30 * SLOWER).exit_code != 0
    assert box.rerun(needed, timeout=30 * SLOWER).exit_code == 0
    command = box.docker_command(frozenset({Capability("SYS_ADMIN")}))
    assert command == ("docker", "run", "--cap-drop", "ALL", "--cap-add", "SYS_ADMIN", IMAGE, "sh", "-c", script)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -9 $$; exit 1"), 1),  # its own init ignores it
        (("no-such-program",), 127),
        (("/plain",), 126),
    ],
)
def test_rerun_answers_as_docker_run_does(sandbox, words, code):
    outcome = sandbox("--rm", "-d", IMAGE, *words).rerun(NOTHING, timeout=30 * SLOWER)
    assert outcome.exit_code == code
    assert not outcome.timed_out


def test_rerun_keeps_the_end_of_both_outputs(sandbox):
    script = "yes 0123456 | head -c 1000000; echo end; echo words >&2"
    outcome = sandbox(IMAGE, "sh", "-c", script).rerun(NOTHING, timeout=60 * SLOWER)
    assert len(outcome.stdout) == 64 * 1024
    assert outcome.stdout.endswith(b"0123456\nend\n")
    assert outcome.stderr == b"words\n"


def test_rerun_that_lasts_too_long_is_killed(sandbox):
    outcome = sandbox("-t", IMAGE, "sleep", "600").rerun(NOTHING, timeout=0.5)
    assert outcome.timed_out
    assert outcome.exit_code == 137
    assert outcome.seconds < 20


def test_rerun_may_be_killed_while_it_starts(sandbox):
    outcome = sandbox(IMAGE, "sleep", "600").rerun(NOTHING, timeout=0.001)
    assert (outcome.timed_out, outcome.exit_code) == (True, 137)


def test_reruns_go_on_at_a_time(sandbox):
    box = sandbox(IMAGE, "sh", "-c", "echo $HOSTNAME")
    assert box.parallel()
    with ThreadPoolExecutor(3) as executor:
        outcomes = executor.map(lambda slot: box.rerun(NOTHING, timeout=60 * SLOWER, slot=slot), range(3))
    assert len({outcome.stdout for outcome in outcomes}) == 3


def test_every_run_reads_the_same_input_and_has_fresh_volumes(sandbox, tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b"hello\n")
    os.close(writer)
    with (tmp_path / "out").open("wb") as out:
        script = "test ! -e /data/seen && echo > /data/seen && cat"
        box = sandbox("-i", "-v", "/data", IMAGE, "sh", "-c", script, stdin=reader, stdout=out)
        before = docker("volume", "ls", "-q").stdout
        assert outcome_of_held(box).exit_code == 0
    assert (tmp_path / "out").read_bytes() == b"hello\n"
    for _ in range(2):
        outcome = box.rerun(NOTHING, timeout=30 * SLOWER)
        assert (outcome.exit_code, outcome.stdout) == (0, b"hello\n")
    assert docker("volume", "ls", "-q").stdout == before
    os.close(reader)


def test_without_i_our_input_is_left_alone(sandbox):
    reader, writer = os.pipe()
    os.write(writer, b"mine")
    with Path(os.devnull).open("wb") as nowhere:
        box = sandbox(IMAGE, "cat", stdin=reader, stdout=nowhere)
        assert outcome_of_held(box).exit_code == 0
    assert os.read(reader, 10) == b"mine"
    os.close(reader)
    os.close(writer)


def test_device_that_is_gone_fails_the_run_as_docker_would(sandbox):
    outcome = sandbox(IMAGE, "echo").rerun(frozenset({Device("/dev/no-such-node")}), timeout=30 * SLOWER)
    assert outcome.exit_code == 125
    assert b"no-such-node" in outcome.stderr


# The held run


@pytest.fixture
def with_command(image):
    steps = f'FROM {image}\nENTRYPOINT ["echo", "entry"]\nCMD ["cmd"]\nENV WORD=of-the-image\nUSER alice\n'
    name = f"{IMAGE}-command"
    with tarfile.open(fileobj=(context := io.BytesIO()), mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(steps)
        tar.addfile(entry, io.BytesIO(steps.encode()))
    subprocess.run(
        ["docker", "build", "-q", "-t", name, "-"],
        input=context.getvalue(),
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        capture_output=True,
        check=True,
        timeout=60 * SLOWER,
    )
    yield name
    docker("rmi", "--force", name)


@pytest.mark.parametrize(
    ("flags", "command", "argv"),
    [
        ((), (), ("echo", "entry", "cmd")),
        ((), ("mine", "-x"), ("echo", "entry", "mine", "-x")),
        (("--entrypoint", "cat"), (), ("cat",)),
        (("--entrypoint=",), ("id", "-u"), ("id", "-u")),
        (("--init",), ("x",), ("echo", "entry", "x")),
        (("--read-only", "-w", "/new", "--network", "none"), ("x",), ("echo", "entry", "x")),
    ],
)
def test_gate_stands_where_docker_would_put_the_workload(sandbox, with_command, flags, command, argv):
    held = caught(sandbox(*flags, with_command, *command))
    assert held.argv == argv
    assert "WORD=of-the-image" in held.env
    assert "HOME=/home/alice" in held.env
    assert held.credentials is not None
    assert (held.credentials.uid, held.credentials.gid, held.credentials.groups) == (1000, 1000, (1000, 2000))


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--user", "alice"),
        ("--user", "1000"),
        ("--user", "1000:other"),
        ("--user", "alice:77", "--group-add", "other", "--group-add", "88"),
        ("--user", "4444"),
        ("--user", "0:other"),
        ("--user", "alice", "-e", "HOME=/mine"),
        ("--init", "--user", "alice"),
        ("--init", "--hostname", "there", "-w", "/etc", "--tmpfs", "/t"),
    ],
)
def test_workload_out_of_the_gate_is_as_docker_starts_it(sandbox, tmp_path, flags):
    script = "id; echo $HOME; echo $PATH; pwd; busybox grep -E 'Cap|NoNew' /proc/self/status"
    words = (*flags, "--entrypoint", "/bin/busybox", IMAGE, "sh", "-c", script)
    with (tmp_path / "out").open("wb") as out:
        box = sandbox(*words, stdout=out)
        recipe = frozenset({Capability("CHOWN"), Capability("SETUID"), Capability("SETGID")})
        assert outcome_of_held(box, recipe).exit_code == 0
    plain = docker("run", "--rm", *box.docker_args(recipe), *words).stdout
    assert set((tmp_path / "out").read_bytes().split()) == set(plain.split())


def test_node_that_has_gone_does_not_keep_the_broad_run_from_starting(sandbox):
    recipe = frozenset({Device("/dev/no-such-node"), Device("/dev/null")})
    assert outcome_of_held(sandbox(IMAGE, "id", stdout=subprocess.DEVNULL), recipe).exit_code == 0


def test_no_new_privileges_is_kept(sandbox, tmp_path):
    with (tmp_path / "out").open("wb") as out:
        box = sandbox("--security-opt", "no-new-privileges", IMAGE, "cat", "/proc/self/status", stdout=out)
        assert outcome_of_held(box).exit_code == 0
    assert "NoNewPrivs:\t1" in (tmp_path / "out").read_text()


def test_terminal_is_the_users_own(sandbox):
    ours, theirs = pty.openpty()
    box = sandbox("-it", IMAGE, "sh", "-c", "test -t 0 && test -t 1 && echo both", stdin=theirs, stdout=theirs)
    assert outcome_of_held(box).exit_code == 0
    assert b"both" in os.read(ours, 1000)
    os.close(ours)
    os.close(theirs)


def test_t_with_i_and_a_pipe_runs_without_a_terminal(sandbox):
    reader, writer = os.pipe()
    os.close(writer)
    assert outcome_of_held(sandbox("-it", IMAGE, "sh", "-c", "test ! -t 0", stdin=reader)).exit_code == 0
    os.close(reader)


def test_deadline_stops_as_docker_stop_does(sandbox):
    box = sandbox(
        "--init", "--stop-signal", "USR1", IMAGE, "sh", "-c", "trap 'exit 9' USR1; while :; do sleep 0.1; done"
    )
    run = box.start(NOTHING)
    become(run, hold=False)
    outcome = run.wait(time.monotonic() + 0.5)
    assert outcome.timed_out
    assert outcome.exit_code == 9


def test_stop_from_another_thread_ends_the_wait(sandbox):
    run = sandbox("--init", IMAGE, "sleep", "600").start(NOTHING)
    become(run, hold=False)
    stopper = threading.Timer(0.2, run.stop)
    stopper.start()
    outcome = run.wait()
    stopper.join()
    assert outcome.exit_code == 143
    assert not outcome.timed_out
    run.stop()


def test_container_removed_by_another_is_said_so(sandbox):
    run = sandbox(IMAGE, "sleep", "600").start(NOTHING)
    become(run, hold=False)
    docker("rm", "--force", "--volumes", *containers())
    with pytest.raises(HostError, match="removed"):
        run.wait(time.monotonic() + 20)


def test_tracer_that_fails_leaves_no_container(sandbox):
    run = sandbox(IMAGE, "sleep", "600").start(NOTHING)
    Steered.seize(run.caught.pid)  # and never waited for again
    run.close()
    assert containers() == []


# What cannot work


@pytest.mark.parametrize(
    ("words", "error", "part"),
    [
        (("no-such-image-of-ours", "x"), UsageError, "no-such-image-of-ours"),
        (("--pull", "never", "no-such-image-of-ours", "x"), UsageError, "never"),
        (("Bad:Name:", "x"), UsageError, "Bad:Name:"),
        ((IMAGE,), UsageError, "no command"),
        (("--user", "nobody-known", IMAGE, "id"), UsageError, "nobody-known"),
        (("--user", "alice:no-group", IMAGE, "id"), UsageError, "no-group"),
        (("--memory", "1", IMAGE, "id"), Refused, "emory"),
        (("--memory", "lots", IMAGE, "id"), Refused, "lots"),
        (("--network", "no-such-network", IMAGE, "id"), Refused, "no-such-network"),
    ],
)
def test_each_mistake_is_named_in_one_line(sandbox, words, error, part):
    with pytest.raises(error) as raised:
        sandbox(*words).start(NOTHING)
    assert part in raised.value.message
    assert raised.value.hint
    assert "\n" not in raised.value.message


def test_taken_name_is_the_users_to_free(sandbox):
    name = f"{IMAGE}-name"
    docker("create", "--name", name, IMAGE, "id")
    try:
        with pytest.raises(UsageError, match=name):
            sandbox("--name", name, IMAGE, "id").start(NOTHING)
    finally:
        docker("rm", name)
    box = sandbox("--name", name, IMAGE, "id")
    assert [box.rerun(NOTHING, timeout=30 * SLOWER).exit_code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("global_flags", "error", "part"),
    [
        (("-H", "unix:///no/such/socket"), HostError, "does not answer"),
        (("-H", "ssh://root@host"), HostError, "another host"),
        (("--context", "no-such-context"), UsageError, "no-such-context"),
    ],
)
def test_engine_that_is_not_there(global_flags, error, part):
    box = DockerSandbox(("docker", *global_flags, "run", IMAGE))
    with pytest.raises(error, match=part) as raised:
        box.facts()
    assert raised.value.hint
    box.close()


def test_client_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    box = DockerSandbox(("docker", "run", IMAGE))
    with pytest.raises(HostError, match="no docker client"):
        box.facts()
    box.close()


def test_ordinary_user_is_told_to_be_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    box = DockerSandbox(("docker", "run", IMAGE))
    with pytest.raises(HostError, match="root"):
        box.facts()
    box.close()


def test_engine_on_another_host_is_told_from_this_one(image, monkeypatch, tmp_path):
    # As seen from here, an engine elsewhere has no such file, or no such process.
    box = DockerSandbox(("docker", "run", IMAGE, "id"))
    monkeypatch.setattr(docker_sandbox, "write_gate", lambda _: tmp_path / "nowhere")
    monkeypatch.setattr(docker_sandbox, "_grants", {})
    with pytest.raises(HostError, match="not as processes of this host"):
        box.facts()
    box.close()
    box = DockerSandbox(("docker", "run", IMAGE, "id"))
    monkeypatch.undo()
    monkeypatch.setattr(docker_gate, "is_at_gate", lambda _: False)
    monkeypatch.setattr(docker_gate, "_START_SECONDS", 0.5)
    with pytest.raises(HostError, match="not as processes of this host"):
        box.start(NOTHING)
    box.close()
    assert containers() == []


@contextmanager
def relay(path):
    """A way to the engine that can be cut: yields the function that cuts it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    ends = [listener]
    threads = []

    def copy(source, target):
        try:
            while chunk := source.recv(65536):
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def accept():
        while True:
            try:
                near = listener.accept()[0]
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect("/var/run/docker.sock")
            ends.extend((near, far))
            for pair in ((near, far), (far, near)):
                threads.append(threading.Thread(target=copy, args=pair, daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()

    def cut():
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        Path(path).unlink(missing_ok=True)

    try:
        yield cut
    finally:
        cut()
        acceptor.join()
        for thread in threads:
            thread.join()
        for end in ends:
            end.close()


def test_engine_that_goes_away_in_the_middle_leaves_nobody_waiting(image, tmp_path):
    with relay(tmp_path / "socket") as cut, Path(os.devnull).open("wb") as nowhere:
        argv = ("docker", "-H", f"unix://{tmp_path}/socket", "run", IMAGE, "sleep", "600")
        box = DockerSandbox(argv, stdout=nowhere, stderr=nowhere)
        run = box.start(NOTHING)
        become(run, hold=False)
        cut()
        with pytest.raises(HostError, match="went away"):
            run.wait(time.monotonic() + 30)
        run.stop()
        box.close()
    docker("rm", "--force", "--volumes", *containers())


def test_what_a_killed_run_left_is_cleaned_up(image):
    code = (
        "import sys; from profiler.harness.docker.sandbox import DockerSandbox\n"
        f"box = DockerSandbox(('docker', 'run', {IMAGE!r}, 'id'), stdout=-3, stderr=-3); box.start(frozenset())\n"
        "from profiler.leftovers import owner_tag; print(owner_tag(), flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    tag = child.stdout.readline().decode().strip()
    assert len(containers(tag)) == 1
    assert (STATE / tag).exists()
    assert not any(tag in name for name in clean_leftovers())
    child.send_signal(signal.SIGKILL)
    child.communicate()
    removed = clean_leftovers()
    assert any(tag in name for name in removed)
    assert any(name.startswith("container ") for name in removed)
    assert containers(tag) == []
    assert not (STATE / tag).exists()
