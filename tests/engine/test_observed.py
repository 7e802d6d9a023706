"""`--seccomp observed` with a real engine: a profile of the observed calls holds, and each of them is needed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from contextlib import closing
from pathlib import Path

import by_hand
import pytest
from pace import SLOWER

from profiler import observing, pipeline
from profiler.harness.docker.sandbox import DockerSandbox
from profiler.kernel import gate
from profiler.model import Capability
from profiler.options import Options, Prove, Seccomp

pytestmark = pytest.mark.engine

# symlink(2) is called only with the argument
SCRIPT = 'mkdir /made && chown 1:1 /made && mkfifo /fifo && case "$1" in link) ln -s x /y ;; esac'


@pytest.fixture
def profiled(busybox_image):
    """Profiles the words of a container's command."""

    def profile(*words, flags=(), image=busybox_image, **options):
        with closing(DockerSandbox(("docker", "run", "--rm", *flags, image, *words))) as sandbox:
            options = {"prove": Prove.ALL, "seccomp": Seccomp.OBSERVED, **options}
            return pipeline.profile(sandbox, Options(**options), lambda line: None)

    return profile


def run(command):
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60 * SLOWER)


def test_the_workload_passes_with_the_observed_calls_and_with_no_others(profiled, tmp_path):
    report = profiled("sh", "-c", SCRIPT, "sh", output=tmp_path / "m.json")
    assert report.verdict.verified
    assert report.verdict.minimal
    assert {p.label for p in report.verdict.recipe} == {"CHOWN", "seccomp:observed"}
    seen = report.verdict.observed
    assert {"mkdir", "chown", "mknodat"} <= seen.workload.keys()
    assert {"capset", "execve"} <= set(seen.runtime)
    assert not {"symlink", "keyctl", "sync"} & set(seen.names)
    command = report.docker_command
    assert run(command).returncode == 0
    linking = run((*command, "link"))  # a call that was not made
    assert linking.returncode != 0
    assert b"not permitted" in linking.stderr


def test_each_name_of_the_profile_counts(profiled, tmp_path):
    report = profiled("sh", "-c", SCRIPT, "sh", output=tmp_path / "m.json")
    path = tmp_path / "m.seccomp.json"
    whole = json.loads(path.read_text())
    allowed = [name for entry in whole["syscalls"] if entry["action"] == "SCMP_ACT_ALLOW" for name in entry["names"]]
    assert set(allowed) == set(report.verdict.observed.names)
    for name in ("mkdir", "chown", "execve", "capset"):
        for entry in (less := json.loads(json.dumps(whole)))["syscalls"]:
            entry["names"] = [other for other in entry["names"] if other != name]
        path.write_text(json.dumps(less))
        assert run(report.docker_command).returncode != 0, name


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--user", "nobody"),
        ("--user", "1000:1000", "-w", "/tmp"),
        ("--init",),
        ("--security-opt", "no-new-privileges"),
        ("-i",),
        ("-t",),
        ("--read-only",),
    ],
    ids=" ".join,
)
def test_it_holds_for_what_the_runtime_does_with_the_users_flags(profiled, tmp_path, flags):
    report = profiled("sh", "-c", "id; cat /proc/self/status", flags=flags, output=tmp_path / "m.json")
    assert report.verdict.observed is not None, report.notes
    for _ in range(3):
        done = run(word for word in report.docker_command if word not in ("-t", "-i"))
        assert done.returncode == 0, done.stderr


def test_a_workload_of_many_processes_passes_again_and_again(profiled, tmp_path):
    script = (
        "for i in 1 2 3 4 5 6 7 8; do (sleep 0.01; echo $i > /tmp/$i) & done; wait; cat /tmp/[1-8] | sort | tail -1"
    )
    report = profiled("sh", "-c", script, output=tmp_path / "m.json")
    assert report.verdict.observed is not None, report.notes
    assert [run(report.docker_command).returncode for _ in range(5)] == [0] * 5


def test_a_service_is_observed_until_it_is_stopped(profiled, tmp_path):
    report = profiled("sh", "-c", "umask 0; exec sleep 1000", run_for=1.0, output=tmp_path / "m.json")
    assert report.verdict.observed is not None, report.notes
    assert "umask" in report.verdict.observed.workload


def test_what_fails_with_the_observed_calls_keeps_the_ordinary_profile(profiled, tmp_path, monkeypatch):
    """As where a run calls what no watched run called."""
    ordinary = observing._allowed

    def too_little(sandbox, recipe):
        allowed = ordinary(sandbox, recipe)
        return dataclasses.replace(allowed, native=allowed.native - {"mkdir", "mkdirat"})

    monkeypatch.setattr(observing, "_allowed", too_little)
    report = profiled("sh", "-c", SCRIPT, "sh", output=tmp_path / "m.json")
    assert report.verdict.verified
    assert report.verdict.observed is None
    assert report.verdict.recipe == {Capability("CHOWN")}
    assert any("with these alone the workload does not pass" in note for note in report.notes)
    assert not any(Path(tmp_path).glob("*.seccomp.json"))


def test_strict_watches_the_recipe_without_its_bound(profiled, tmp_path):
    report = profiled("sh", "-c", "touch /made; chown 1 /made; true", strict=True, output=tmp_path / "m.json")
    assert {p.label for p in report.verdict.recipe} == {"CHOWN", "seccomp:observed"}


def test_calls_that_the_filter_denies_are_opened_and_the_rest_closed(profiled, tmp_path, busybox_image):
    report = profiled("unshare", "-U", "true", flags=("--user", "1000"), output=tmp_path / "m.json")
    unconfined = {"apparmor=unconfined"} if by_hand.denies_user_namespaces(busybox_image) else set()
    assert {p.label for p in report.verdict.recipe} == {"seccomp:unshare", "seccomp:observed"} | unconfined
    assert run(report.docker_command).returncode == 0


# mov al,36; int 0x80 (i386: sync, x86-64: getitimer); xor ebx,ebx; mov al,1; int 0x80 (i386: exit, x86-64: write)
THIRTY_TWO_BIT = b"\xb0\x24\xcd\x80\x31\xdb\xb0\x01\xcd\x80"


def test_32_bit_calls_are_observed_by_their_own_table(profiled, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_CODE", THIRTY_TWO_BIT)
    program = tmp_path / "program"
    program.write_bytes(gate.gate_elf())
    program.chmod(0o755)
    monkeypatch.undo()
    if subprocess.run([program], check=False).returncode != 0:
        pytest.skip("this kernel makes no 32-bit calls")
    script = "chown 1 /tmp && exec /program"
    report = profiled("sh", "-c", script, flags=("-v", f"{program}:/program:ro"), output=tmp_path / "m.json")
    observed = report.verdict.observed
    assert observed is not None, report.notes
    assert observed.i386 == {"sync": "/program", "exit": "/program"}
    assert "getitimer" not in observed.names
    profile = json.loads((tmp_path / "m.seccomp.json").read_text())
    assert profile["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert run(report.docker_command).returncode == 0
