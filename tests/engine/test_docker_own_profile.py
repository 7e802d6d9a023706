"""A profile of the workload's own instead of `apparmor=unconfined`. Skipped where there is no AppArmor."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import by_hand
import images
import pytest
from pace import SLOWER

from profiler import apparmor

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

UNSHARES = "unshare -U true"


@pytest.fixture(autouse=True)
def _needs_apparmor() -> None:
    if apparmor.parser() is None or not by_hand.has_apparmor():
        pytest.skip("the engine confines by no AppArmor, or there is no apparmor_parser")


def run_with(document: dict[str, Any], script: str) -> subprocess.CompletedProcess[str]:
    """Run `script` with the recipe and its own profile, loaded as the report says."""
    own = document["recipe"]["apparmor_profile"]
    subprocess.run([apparmor.PARSER, "--replace", own["file"]], check=True)
    try:
        words = [
            word.replace("apparmor=unconfined", f"apparmor={own['name']}") for word in document["recipe"]["docker_args"]
        ]
        return subprocess.run(
            ["docker", "run", "--rm", *words, images.busybox(), "sh", "-c", script],
            check=False, capture_output=True, text=True, timeout=60 * SLOWER,
        )  # fmt: skip
    finally:
        subprocess.run([apparmor.PARSER, "--remove", own["file"]], check=True)


def test_a_mount_is_allowed_by_its_type_alone(tmp_path: Path) -> None:
    document, said = by_hand.profiled(tmp_path / "m.json", "mount -t tmpfs none /mnt")
    assert document["recipe"]["security_opt"] == ["apparmor=unconfined"]
    assert document["recipe"]["apparmor_profile"]["allows"] == ["mounting tmpfs"]
    assert "apparmor_parser --replace" in said
    assert "capprofile-" not in (apparmor.SECURITYFS / "profiles").read_text()
    assert run_with(document, "mount -t tmpfs none /mnt").returncode == 0
    assert run_with(document, "mount -t ramfs none /mnt").returncode != 0
    assert run_with(document, "mount -o bind /tmp /mnt").returncode != 0


def test_a_user_namespace_is_expected_to_be_denied_where_the_engines_profile_denies_it(tmp_path: Path) -> None:
    """The first rerun has what is needed, and the profile allows no more."""
    document, _ = by_hand.profiled(tmp_path / "m.json", UNSHARES)
    denied = by_hand.denies_user_namespaces(images.busybox())
    options = {option for option in document["recipe"]["security_opt"] if not option.startswith("seccomp=")}
    assert options == ({"apparmor=unconfined"} if denied else set())
    assert document["recipe"]["cap_add"] == []
    assert document["recipe"]["syscalls"] == ["unshare"]
    first, *_ = document["verification"]["runs"]
    assert first["passed"]
    if denied:
        assert document["recipe"]["apparmor_profile"]["allows"] == ["user namespaces"]
        assert run_with(document, UNSHARES).returncode == 0
        assert run_with(document, "mount -t tmpfs none /mnt").returncode != 0


def test_a_denial_that_no_stopped_call_shows_is_found_without_halving(tmp_path: Path) -> None:
    """The profile denies looking into the host's processes, which takes no more than opening a file to read."""
    document, _ = by_hand.profiled(tmp_path / "m.json", "cat /proc/1/environ > /dev/null", "--pid=host")
    assert "apparmor=unconfined" in document["recipe"]["security_opt"]
    assert document["recipe"]["cap_add"] == ["SYS_PTRACE"]
    assert not any(run["purpose"] == "halve" for run in document["verification"]["runs"])


def test_a_parameter_is_allowed_by_its_name_alone(tmp_path: Path) -> None:
    write = "echo 65 > /proc/sys/net/ipv4/ip_default_ttl"
    document, _ = by_hand.profiled(tmp_path / "m.json", write)
    assert set(document["recipe"]["security_opt"]) >= {"apparmor=unconfined", "systempaths=unconfined"}
    assert document["recipe"]["apparmor_profile"]["allows"] == ["writing to /proc/sys/net/ipv4/ip_default_ttl"]
    assert run_with(document, write).returncode == 0
    assert run_with(document, "echo 1 > /proc/sys/net/ipv4/ip_no_pmtu_disc").returncode != 0
