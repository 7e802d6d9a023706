"""The filter that this very engine installs, and the profile made of it, given back to the engine."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest
from pace import SLOWER

from profiler.kernel import bpf
from profiler.kernel.filters import filters_of
from profiler.witness.filter import EngineFilter, numbers, rebuild

pytestmark = pytest.mark.engine

IMAGE = "capprofile-test-filter"
BUSYBOX = Path("/bin/busybox")
SCHEMA = json.loads((Path(__file__).parents[2] / "seccomp" / "profile.schema.json").read_text())
OPENED = frozenset({"keyctl", "unshare"})
ARGUMENTS = [
    *((value,) for value in (0, 1, 8, 40, 0x11, 0x20000, 0x20008, 0x10000000, 0x40000000, 0x7E020000, 0xFFFFFFFF)),
    (1 << 32,), (8 | 1 << 32,), (2**64 - 1,), (0x10000000 | 1 << 63,), (0x01000000,), (2, 3), (16, 3, 9), (16, 3, 1),
]  # fmt: skip


def docker(*args: str, stdin: bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["docker", *args], input=stdin, capture_output=True, check=check, timeout=60 * SLOWER)


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    if not BUSYBOX.exists():
        pytest.skip("needs busybox-static")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
    docker("import", "-", IMAGE, stdin=archive.getvalue())
    yield IMAGE
    docker("rmi", IMAGE)


@contextmanager
def container(image: str, *options: str) -> Iterator[int]:
    """The host's pid of a container that waits for nothing."""
    name = docker("run", "--detach", "--rm", *options, image, "/bin/busybox", "sleep", "600").stdout.decode().strip()
    try:
        yield int(docker("inspect", "--format", "{{.State.Pid}}", name).stdout)
    finally:
        docker("rm", "--force", name)


def filter_of(image: str, *options: str) -> bytes:
    with container(image, *options) as pid:
        (program,) = filters_of(pid)
    return program


@pytest.fixture(scope="module")
def default(image: str) -> bytes:
    return filter_of(image)


@pytest.fixture(scope="module")
def profile(default: bytes, tmp_path_factory: pytest.TempPathFactory) -> str:
    rebuilt = rebuild(default, OPENED)
    assert rebuilt.stricter == ()
    jsonschema.validate(rebuilt.profile, SCHEMA)
    path = tmp_path_factory.mktemp("profile") / "seccomp.json"
    path.write_text(json.dumps(rebuilt.profile))
    return f"seccomp={path}"


def test_the_default_denies_what_it_is_known_for(default: bytes, image: str):
    engine = EngineFilter(default)
    assert {"keyctl", "unshare", "mount", "clone"} <= engine.ever_denied()
    assert "read" not in engine.ever_denied()
    assert 0 in engine.examined_args(numbers("x86_64")["clone"])
    admin = EngineFilter(filter_of(image, "--cap-add", "SYS_ADMIN"))
    assert "mount" not in admin.ever_denied()


@pytest.mark.parametrize("options", [(), ("--cap-add", "SYS_ADMIN")], ids=["default", "with SYS_ADMIN"])
def test_the_engine_makes_the_same_filter_of_the_profile(image: str, tmp_path: Path, options: tuple[str, ...]):
    original = EngineFilter(filter_of(image, *options))
    path = tmp_path / "seccomp.json"
    path.write_text(json.dumps(rebuild(original.program, OPENED).profile))
    ours = EngineFilter(filter_of(image, *options, "--security-opt", f"seccomp={path}"))
    different = set()
    for arch, audit_arch in (
        ("x86_64", bpf.AUDIT_ARCH_X86_64),
        ("x32", bpf.AUDIT_ARCH_X86_64),
        ("i386", bpf.AUDIT_ARCH_I386),
    ):
        for name, number in numbers(arch).items():
            for args in ARGUMENTS if original.examined_args(number, audit_arch) else ARGUMENTS[:1]:
                here, there = original.answer(number, args, audit_arch), ours.answer(number, args, audit_arch)
                if name in OPENED:
                    assert there.allowed
                elif here != there and (arch == "x86_64" or here.allowed or there.allowed):
                    different.add((arch, name, args, str(here), str(there)))
    assert not different
    unknown = 1 << 20
    assert ours.answer(unknown) == original.answer(unknown)


def test_the_opened_call_works_with_the_profile_only(image: str, profile: str):
    command: Callable[..., list[str]] = lambda *options: [  # noqa: E731
        # AppArmor, too, denies user namespaces to a container where it mediates them.
        "run", "--rm", "--security-opt", "apparmor=unconfined", *options,
        image, "/bin/busybox", "unshare", "--user", "/bin/busybox", "true",
    ]  # fmt: skip
    assert docker(*command(), check=False).returncode != 0
    assert docker(*command("--security-opt", profile), check=False).returncode == 0


def test_all_else_stays_denied_with_the_profile(image: str, profile: str):
    with container(image, "--security-opt", profile) as pid:
        (program,) = filters_of(pid)
    engine = EngineFilter(program)
    assert engine.allows(numbers("x86_64")["keyctl"])
    for name in ("add_key", "mount", "bpf", "kexec_load", "open_by_handle_at"):
        assert not engine.allows(numbers("x86_64")[name])


def compare(index: int, op: str, value: int, two: int = 0) -> dict[str, object]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": two}


CONDITIONS = {
    "socket": [[compare(0, "LT", 38)], [compare(0, "EQ", 39)], [compare(0, "GT", 40)]],
    "keyctl": [[compare(0, "NE", 5), compare(2, "GE", 1 << 33 | 7)], [compare(0, "EQ", 5), compare(1, "LE", 9)]],
    "personality": [[compare(0, "MASKED_EQ", 0xFF0000000000000F, 1)], [compare(3, "NE", 1 << 40)]],
}


def test_conditions_as_libseccomp_compiles_them_are_rebuilt(image: str, default: bytes, tmp_path: Path):
    profile = rebuild(default, frozenset()).profile
    entries = [
        entry | {"names": [name for name in entry["names"] if name not in CONDITIONS]} for entry in profile["syscalls"]
    ]
    entries = [entry for entry in entries if entry["names"]]
    for name, alternatives in CONDITIONS.items():
        entries += [{"names": [name], "action": "SCMP_ACT_ALLOW", "args": args} for args in alternatives]
    path = tmp_path / "conditions.json"
    path.write_text(json.dumps(profile | {"syscalls": entries, "architectures": ["SCMP_ARCH_X86_64"]}))
    first = EngineFilter(filter_of(image, "--security-opt", f"seccomp={path}"))
    rebuilt = rebuild(first.program, frozenset())
    assert rebuilt.stricter == ()
    path.write_text(json.dumps(rebuilt.profile))
    second = EngineFilter(filter_of(image, "--security-opt", f"seccomp={path}"))
    values = (
        0,
        1,
        5,
        7,
        9,
        10,
        37,
        38,
        39,
        40,
        41,
        1 << 33,
        1 << 33 | 6,
        1 << 33 | 7,
        3 << 33,
        1 << 40,
        0xFF << 56 | 1,
    )
    for name in CONDITIONS:
        answers = set()
        for args in itertools.product(values, repeat=2):
            for vector in ((*args, 0, 0), (args[0], 0, args[1], 0), (args[0], 0, 0, args[1])):
                number = numbers("x86_64")[name]
                assert first.answer(number, vector) == second.answer(number, vector)
                answers.add(first.answer(number, vector))
        assert len(answers) == 2
