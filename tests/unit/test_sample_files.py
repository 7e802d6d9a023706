"""The samples' files keep to docs/samples.md, and images are made from the right apt sources. No engine is asked."""

from __future__ import annotations

import fnmatch
import os
import subprocess
from pathlib import Path

import by_hand
import images
import pytest
from by_hand import ByHand, Sample

from profiler.kernel import capabilities

WORKLOAD_KEYS = {"title": str, "teaches": str, "image": str, "docker": list, "seconds": int}
EXPECTED_KEYS = {
    "cap_add": list, "devices": list, "syscalls": list, "apparmor_unconfined": bool, "exit_code": int, "why": dict,
    "alternatives": list,
}  # fmt: skip
every_sample = pytest.mark.parametrize("sample", by_hand.samples(), ids=lambda sample: sample.name)


@every_sample
def test_keys_are_the_documented_ones(sample: Sample) -> None:
    for document, keys in ((sample.settings, WORKLOAD_KEYS), (sample.expected, EXPECTED_KEYS)):
        assert set(document) <= set(keys)
        for key, value in document.items():
            assert type(value) is keys[key], key
    assert {"title", "teaches", "image"} <= set(sample.settings)
    assert {"cap_add", "devices", "syscalls", "exit_code"} <= set(sample.expected)
    documentation = (Path(__file__).parents[2] / "docs" / "samples.md").read_text("utf-8")
    assert all(f"`{key}`" in documentation for key in {*WORKLOAD_KEYS, *EXPECTED_KEYS})
    assert f"`{sample.name}`" in documentation


@every_sample
def test_members_are_known_and_explained(sample: Sample) -> None:
    recipe = sample.recipes()[0]
    known = set(by_hand.CAPABILITIES)
    assert set(recipe.cap_add) <= known
    assert set(recipe.syscalls) <= by_hand.DENIED
    assert all(pattern.startswith("/dev/") for pattern in recipe.devices)
    for members in (recipe.cap_add, recipe.syscalls):
        assert list(members) == sorted(set(members))
    assert set(sample.expected.get("why", {})) == {*recipe.cap_add, *recipe.devices, *recipe.syscalls}
    assert all("because" in alternative for alternative in sample.expected.get("alternatives", ()))


@every_sample
def test_scripts_can_be_run_and_parse(sample: Sample) -> None:
    directory = images.SAMPLES / sample.name
    assert sample.settings["image"] in images.BASES
    scripts = sorted(directory.glob("*.sh"))
    assert directory / "workload.sh" in scripts
    for script in scripts:
        assert os.access(script, os.X_OK)
        assert "set -eu" in script.read_text("utf-8")
        assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0


def test_capabilities_tried_are_the_kernels_names() -> None:
    assert set(by_hand.CAPABILITIES) <= set(capabilities.CAPABILITIES)


def test_smallest_gives_up_the_first_members_first() -> None:
    asked: list[list[str]] = []

    def passes(some: list[str]) -> bool:
        asked.append(some)
        return "d" in some and ("a" in some or "c" in some)

    assert sorted(by_hand.smallest(list("abcdef"), passes)) == ["c", "d"]
    assert len(asked) < 12


def test_without_each_takes_one_member_at_a_time() -> None:
    recipe = ByHand(cap_add=("KILL", "CHOWN"), devices=("/dev/fuse",))
    assert [member for member, _ in recipe.without_each()] == ["KILL", "CHOWN", "/dev/fuse"]
    assert ByHand(cap_add=("CHOWN",), devices=("/dev/fuse",)) in [less for _, less in recipe.without_each()]


def test_loop_pattern_leaves_the_control_node_out() -> None:
    assert fnmatch.fnmatch("/dev/loop7", "/dev/loop[0-9]*")
    assert not fnmatch.fnmatch("/dev/loop-control", "/dev/loop[0-9]*")


def test_one_line_entries_of_a_deb822_file() -> None:
    text = """# a comment
Types: deb deb-src
URIs: http://example.invalid/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main
 contrib
Signed-By: /usr/share/keyrings/a.gpg

Types: deb
URIs: http://example.invalid/other
Suites: nodistro
Components: main

Types: deb
URIs: http://example.invalid/off
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://example.invalid/sources
Suites: bookworm
Components: main
"""
    assert images.one_line_entries(text, "bookworm") == [
        "deb [signed-by=/usr/share/keyrings/a.gpg] http://example.invalid/debian bookworm main contrib",
        "deb [signed-by=/usr/share/keyrings/a.gpg] http://example.invalid/debian bookworm-updates main contrib",
    ]


def test_host_sources_reads_both_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "host_suite", lambda: "noble")
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://example.invalid/u noble main\n"
        "deb [arch=amd64 trusted=yes] http://example.invalid/u noble main universe\n"
        "deb http://example.invalid/third noble-third main\n"
    )
    (tmp_path / "sources.list.d" / "a.sources").write_text(
        "Types: deb\nURIs: http://example.invalid/s\nSuites: noble-security\nComponents: main\n"
    )
    assert images.host_sources(tmp_path).splitlines() == [
        "deb [arch=amd64 trusted=yes] http://example.invalid/u noble main universe",
        "deb http://example.invalid/s noble-security main",
    ]


def test_no_source_of_the_suite_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "host_suite", lambda: "noble")
    with pytest.raises(images.ImageError, match="noble"):
        images.host_sources(tmp_path)
