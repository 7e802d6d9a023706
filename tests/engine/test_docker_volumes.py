"""Each rerun finds the user's volumes as they were before the first run, whose effects alone remain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest

from profiler import pipeline
from profiler.harness.docker import volumes
from profiler.harness.docker.sandbox import DockerSandbox
from profiler.leftovers import DISK, owner_tag
from profiler.options import Options, Prove

pytestmark = pytest.mark.engine

ONCE = "test -e /data/done || { chown 1000 /data && : > /data/done; }"  # a second run has nothing to do


@pytest.fixture
def profiled(busybox_image: str) -> Any:
    """Profiles a script in a container: the labels of its recipe, and the notes."""

    def profile(script: str, *flags: str, **options: Any) -> tuple[set[str], tuple[str, ...]]:
        words = ("docker", "run", "--rm", *flags, busybox_image, "sh", "-c", script)
        with closing(DockerSandbox(words)) as sandbox:
            report = pipeline.profile(sandbox, Options(prove=Prove.ALL, jobs=2, **options), lambda line: None)
        assert not list(DISK.glob(f"{owner_tag()}-volumes"))
        assert report.verdict.verified
        return {privilege.label for privilege in report.verdict.recipe}, report.notes

    return profile


@pytest.fixture
def volume() -> Iterator[Any]:
    """An empty named volume."""
    client = docker.from_env()
    made = client.volumes.create()
    yield made
    made.remove(force=True)
    client.close()


@pytest.mark.parametrize("flag", ["--volume={}:/data", "--mount=type=bind,source={},target=/data"])
def test_a_bound_directory_is_as_it_was(profiled: Any, tmp_path: Path, flag: str) -> None:
    (tmp_path / "before").write_text("kept\n")
    script = f"grep -q kept /data/before && rm /data/before && {ONCE}"
    members, notes = profiled(script, flag.format(tmp_path))
    assert members == {"CHOWN", "DAC_OVERRIDE"}
    assert "each rerun found in /data what was there before the first run" in notes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done"]  # what the first run left
    assert tmp_path.stat().st_uid == 1000


def test_a_named_volume_is_as_it_was(profiled: Any, volume: Any) -> None:
    assert profiled(ONCE, "-v", f"{volume.name}:/data")[0] == {"CHOWN", "DAC_OVERRIDE"}
    assert profiled(ONCE, "-v", f"{volume.name}:/data")[0] == set()  # now it is done
    assert profiled("rm /data/done", "-v", f"{volume.name}:/data")[0] == {"DAC_OVERRIDE"}


def test_a_bound_file_is_as_it_was(profiled: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old\n")
    file.chmod(0o600)
    os.chown(file, 1000, 1000)
    assert profiled("grep old /f && echo new > /f", "-v", f"{file}:/f")[0] == {"DAC_OVERRIDE"}
    assert file.read_text() == "new\n"


def test_a_check_finds_what_each_run_left_under_the_users_path(profiled: Any, tmp_path: Path) -> None:
    script = "chown 1000 /data 2> /dev/null; :"
    check = f'test "$(stat -c %u {tmp_path})" = 1000'
    assert profiled(script, "-v", f"{tmp_path}:/data", check=check)[0] == {"CHOWN"}
    os.chown(tmp_path, 0, 0)
    service = f"{script}; exec sleep 1000"
    flags = ("--stop-timeout", "1", "-v", f"{tmp_path}:/data")
    assert profiled(service, *flags, check=check, run_for=1.0)[0] == {"CHOWN"}


def test_what_cannot_be_set_aside_is_told(
    profiled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busybox_image: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    _, notes = profiled("true", "-v", f"{tmp_path}:/data")
    assert any(note.startswith("reruns found in /data what earlier runs had left: fifo") for note in notes)
    monkeypatch.setattr(volumes, "MOST_ENTRIES", 2)
    (tmp_path / "fifo").unlink()
    for name in "abc":
        (tmp_path / name).touch()
    words = ("docker", "run", "--rm", "-v", f"{tmp_path}:/data", busybox_image, "true")
    with closing(DockerSandbox(words)) as sandbox:
        assert not sandbox.parallel()
        assert any("more than 2 files" in note for note in sandbox.notes())
    # what nobody would take for files is not worth a word
    _, notes = profiled("true", "-v", "/dev/null:/data", "-v", "/proc:/host")
    assert not any("reruns" in note for note in notes)
