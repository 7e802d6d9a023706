"""Every bad input is answered with one clear line, a hint and the documented exit code. Nothing runs, nothing stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pace import SLOWER
from program import capprofile, environment

from profiler.leftovers import STATE

pytestmark = pytest.mark.engine

USAGE, HOST, WORKLOAD = 2, 3, 4


def refused(done, code: int, *says: str) -> None:
    """The last two lines are the refusal and its hint; there is neither a traceback nor the word of a bug."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    lines = done.stderr.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("  hint: ")]
    assert at == len(lines) - 1
    assert lines[-2].startswith("capprofile: ")
    for words in says:
        assert words in lines[-2]


def run(image: str, *words: str | bytes, flags: tuple[str | bytes, ...] = ("--rm",), **options):
    return capprofile("run", "--", "docker", "run", *flags, image, *words, **options)


def test_no_such_image() -> None:
    done = capprofile("run", "--", "docker", "run", "--pull=never", "no-such-image:at-all", "true")
    refused(done, USAGE, "no-such-image:at-all")


def test_no_image_s_name() -> None:
    refused(capprofile("run", "--", "docker", "run", "UPPER/case", "true"), USAGE, "UPPER/case")


@pytest.mark.parametrize(
    "host", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "ssh://root@elsewhere", "nonsense"]
)
def test_no_engine_and_one_elsewhere(busybox_image: str, host: str) -> None:
    refused(run(busybox_image, "true", env=environment(DOCKER_HOST=host)), HOST, "engine")


def test_no_docker_client(busybox_image: str, tmp_path: Path) -> None:
    refused(run(busybox_image, "true", env=environment(PATH=str(tmp_path))), HOST, "docker client")


# What the program imports is imported before root is given up: nobody may not be able to read this environment.
AS_NOBODY = """
import os, sys
import encodings.ascii, encodings.idna, encodings.latin_1
import profiler.cleaning, profiler.cli, profiler.doctor, profiler.pipeline
import profiler.harness.docker.sandbox, profiler.harness.native
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(profiler.cli.answer(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "words",
    [("run", "--", "docker", "run", "image", "true"), ("run", "--", "true"), ("doctor", "--clean")],
    ids=" ".join,
)
def test_not_root(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * SLOWER,
        cwd="/",
    )
    refused(done, HOST, "root")


@pytest.mark.parametrize(
    ("flags", "words", "code", "says"),
    [
        ((), ("no-such-command",), WORKLOAD, "no-such-command: not found in PATH"),
        ((), ("/etc/passwd",), WORKLOAD, "/etc/passwd: cannot be executed"),
        ((), ("",), WORKLOAD, "no program to execute"),
        (("--no-such-flag",), ("true",), USAGE, "no flag --no-such-flag"),
        (("--memory", "much"), ("true",), HOST, "much"),
        (("-v", "name:/x:nonsense"), ("true",), HOST, "nonsense"),
        (("--user", "nobody-here"), ("id",), USAGE, "nobody-here"),
        (("--network", "no-such-network"), ("true",), HOST, "no-such-network"),
        (("--env-file", "/no/such/file"), ("true",), HOST, "/no/such/file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_docker_would_not_take(
    busybox_image: str, flags: tuple[str, ...], words: tuple[str, ...], code: int, says: str
) -> None:
    refused(run(busybox_image, *words, flags=("--rm", *flags)), code, says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "COMMAND"),
        (("--",), "COMMAND"),
        (("--", ""), "no command is given"),
        (("--", "docker", "run"), "no image is named"),
        (("--", "docker", "run", "--rm"), "no image is named"),
        (("docker", "ps"), "only `docker run` can be profiled"),
        (("--", "docker", "exec", "x", "true"), "only `docker run` can be profiled"),
        (("--for", "5s", "--until-healthy", "--", "true"), "exclude each other"),
        (("--until-healthy", "--", "true"), "needs a container"),
        (("--network", "host", "--", "docker", "run", "x"), "embedded sandbox"),
        (("-o", "/no/such/directory/m.json", "--", "true"), "/no/such/directory"),
        (("-o", "/", "--", "true"), "is a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_line_that_says_nothing(words: tuple[str, ...], says: str) -> None:
    refused(capprofile("run", *words), USAGE, says)


def test_an_output_that_cannot_be_written_is_told_before_anything_runs(busybox_image: str, tmp_path: Path) -> None:
    done = capprofile("run", "-o", "/proc/manifest.json", "--", "sh", "-c", f"touch {tmp_path}/ran; echo it ran")
    refused(done, USAGE, "/proc/manifest.json")
    assert "it ran" not in done.stdout


@pytest.mark.parametrize("command", ["no-such-command", "/no/such/command", "/etc/passwd", "/etc"])
def test_no_command_in_the_embedded_sandbox(command: str) -> None:
    refused(capprofile("run", "--", command), WORKLOAD, f"{command}: ")


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    place = tmp_path / "gone"
    place.mkdir()
    done = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", sys.executable, "-m", "profiler.cli", "run", "--", "true"],
        cwd=place, env=environment(), capture_output=True, text=True, check=False, timeout=60 * SLOWER,
    )  # fmt: skip
    refused(done, USAGE, "working directory")


def test_a_workload_that_fails_anyway_is_told_with_what_it_asked_for(busybox_image: str) -> None:
    done = run(busybox_image, "sh", "-c", "mount -t tmpfs none /mnt; exit 7", flags=("--rm", "--privileged"))
    refused(done, WORKLOAD, "exit code 7")
    assert "SYS_ADMIN" in done.stderr
    assert "mount(" in done.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"schema": "capprofile/manifest/v9"}', "v9"),
        (b'{"schema": "capprofile/manifest/v1"}', "not a complete manifest"),
        (b"{", "is not JSON"),
        (b"[]", "no manifest"),
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "manifest.json"
    file.write_bytes(content)
    refused(capprofile("explain", str(file)), USAGE, says)


def test_a_manifest_that_is_a_directory_or_not_there(tmp_path: Path) -> None:
    refused(capprofile("explain", str(tmp_path)), USAGE, "directory")
    refused(capprofile("explain", str(tmp_path / "none")), USAGE, "No such file")


def test_explain_of_what_the_manifest_does_not_have(busybox_image: str, tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    command = ("docker", "run", "--rm", "--privileged", busybox_image, "chroot", "/", "true")
    assert capprofile("run", "-o", str(file), "--", *command).returncode == 0
    assert json.loads(file.read_text(encoding="utf-8"))["recipe"]["cap_add"] == ["SYS_CHROOT"]
    refused(capprofile("explain", str(file), "BOGUS"), USAGE, "BOGUS")


def test_bytes_that_are_no_text(busybox_image: str, tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    script = b'echo "$A"; echo > "/tmp/\xff"; chown 1:1 "/tmp/\xff"'
    flags = ("--rm", "-e", b"A=\xfe")
    words = ("run", "-o", str(file), "--", "docker", "run", *flags, busybox_image, "sh", "-c", script)
    done = capprofile(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout  # Docker's own client makes U+FFFD of such a byte
    assert "CHOWN" in done.stderr
    assert capprofile("explain", str(file)).returncode == 0


def test_nothing_of_these_is_left() -> None:
    mine = [path for path in STATE.iterdir() if f"-{os.getpid()}-" in path.name] if STATE.is_dir() else []
    assert mine == []
