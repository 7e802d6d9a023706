"""Where SELinux confines the engine's containers: `label=disable` only where it is needed, with what was denied.

Skipped elsewhere; `tests/guest/run.sh --lsm selinux` has such a host.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import by_hand
import images
import pytest
from pace import SLOWER

from profiler.kernel.selinux import is_enforced, label_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
UNLABELLED = ["--security-opt", "label=disable"]


@pytest.fixture(autouse=True)
def _needs_labels() -> None:
    said = subprocess.run(
        ["docker", "info", "--format", "{{.SecurityOptions}}"], check=False, capture_output=True, text=True
    ).stdout
    if "name=selinux" not in said or not is_enforced():
        pytest.skip("the engine gives its containers no SELinux labels, or these are not enforced")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the host's own; files below /tmp have the label of who made them, which differs."""
    directory = Path(tempfile.mkdtemp(prefix="capprofile-test-", dir="/srv"))
    directory.chmod(0o755)
    (directory / "file").write_text("kept\n", encoding="utf-8")
    yield directory
    shutil.rmtree(directory)


def passes(script: str, *flags: str) -> bool:
    """By hand, with these flags alone."""
    words = ["docker", "run", "--rm", "--cap-drop", "ALL", *flags, images.busybox(), "sh", "-ec", script]
    return subprocess.run(words, check=False, capture_output=True, timeout=60 * SLOWER).returncode == 0


def denials(document: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [row for row in document["requirements"] if row["privilege"] == "label=disable"]
    return [piece["label"] for row in rows for piece in row["evidence"] if "label" in piece]


def test_what_a_container_may_do_leaves_it_labelled(tmp_path: Path) -> None:
    document, _ = by_hand.profiled(tmp_path / "m.json", "echo one > /tmp/file; chown 1000 /tmp/file")
    assert document["recipe"]["security_opt"] == []
    assert document["recipe"]["cap_add"] == ["CHOWN"]


def test_a_mount_needs_the_label_off_and_says_what_was_denied(tmp_path: Path) -> None:
    script = "mount -t tmpfs none /mnt"
    document, _ = by_hand.profiled(tmp_path / "m.json", script)
    recipe = document["recipe"]
    assert (recipe["cap_add"], recipe["security_opt"]) == (["SYS_ADMIN"], ["label=disable"])
    assert document["verification"]["minimal"] == "proved"
    assert len(document["verification"]["runs"]) == 3  # the one that fails tells by itself what it lacks
    (first, *_) = denials(document)
    assert first["class"] in ("filesystem", "dir")
    assert set(first["permissions"]) <= {"mount", "mounton"}
    assert ":container_t:" in first["scontext"]
    assert passes(script, *recipe["docker_args"])
    assert not passes(script, "--cap-add", "SYS_ADMIN")


def test_files_of_the_host_need_their_label_and_not_none_at_all(tmp_path: Path, place: Path) -> None:
    script = "cat /x/file; echo more > /x/more"
    before = label_of(str(place / "file"))
    document, _ = by_hand.profiled(tmp_path / "m.json", script, "-v", f"{place}:/x")
    assert document["recipe"]["security_opt"] == ["label=disable"]
    assert "read" in {permission for denial in denials(document) for permission in denial["permissions"]}
    advice = [row for row in document["safer"] if row["flag"] == f"-v {place}:/x:z"]
    assert advice
    assert advice[0]["reason"].startswith("tried on copies, the workload passes")
    assert label_of(str(place / "file")) == before  # only copies were relabelled
    assert not passes(script, "-v", f"{place}:/x")
    assert passes(script, "-v", f"{place}:/x:z")


def test_files_that_have_the_containers_label_need_nothing(tmp_path: Path, place: Path) -> None:
    document, _ = by_hand.profiled(tmp_path / "m.json", "cat /x/file; echo more > /x/more", "-v", f"{place}:/x:z")
    assert document["recipe"]["security_opt"] == []
