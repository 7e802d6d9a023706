"""The samples: what was found for them by hand still holds on this host, and capprofile finds the same."""

from __future__ import annotations

import fnmatch
import functools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import by_hand
import images
import pytest
from by_hand import ByHand, Sample

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
every_sample = pytest.mark.parametrize("sample", by_hand.samples(), ids=lambda sample: sample.name)


@functools.cache
def has_apparmor() -> bool:
    """Whether the engine confines its containers with AppArmor."""
    listing = subprocess.run(
        ["docker", "info", "--format", "{{.SecurityOptions}}"], check=True, capture_output=True, text=True
    )
    return "name=apparmor" in listing.stdout


@every_sample
def test_recipe_found_by_hand_passes_and_needs_each_member(sample: Sample) -> None:
    recipe = sample.recipes(has_apparmor())[0]
    whole = by_hand.run(sample, recipe)
    assert whole.returncode == sample.expected["exit_code"], whole.stderr.decode(errors="replace")[-2000:]
    fewer = list(recipe.without_each())
    with ThreadPoolExecutor(max_workers=4) as pool:
        codes = list(pool.map(lambda less: by_hand.run(sample, less[1]).returncode, fewer))
    not_needed = [
        member for (member, _), code in zip(fewer, codes, strict=True) if code == sample.expected["exit_code"]
    ]
    assert not not_needed


@every_sample
def test_alternatives_pass_by_hand(sample: Sample) -> None:
    for recipe in sample.recipes(has_apparmor())[1:]:
        done = by_hand.run(sample, recipe)
        assert done.returncode == sample.expected["exit_code"], (recipe, done.stderr.decode(errors="replace")[-2000:])


@every_sample
def test_capprofile_finds_the_recipe(sample: Sample, tmp_path: Path) -> None:
    manifest = profiled(sample, tmp_path / "manifest.json")
    assert manifest["schema"] == "capprofile/manifest/v1"
    assert manifest["workload"]["exit_code"] == sample.expected["exit_code"]
    assert manifest["losses"] == {}
    assert manifest["verification"]["status"] == "verified"
    assert manifest["verification"]["minimal"] == "proved"
    recipe = manifest["recipe"]
    wrong = [difference(recipe, expected) for expected in sample.recipes(has_apparmor())]
    assert "" in wrong, wrong[0]


def profiled(sample: Sample, manifest: Path) -> dict[str, Any]:
    """The manifest that `capprofile run` writes for the sample."""
    image = images.sample(images.SAMPLES / sample.name)
    done = subprocess.run(
        [sys.executable, "-m", "profiler.cli", "run", "--prove", "-o", str(manifest), "--",
         "docker", "run", "--rm", "--privileged", *sample.docker_flags(), image],
        check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=560, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 0, f"capprofile ended with {done.returncode}:\n{done.stderr[-4000:]}"
    document: dict[str, Any] = json.loads(manifest.read_text("utf-8"))
    return document


def difference(recipe: dict[str, Any], expected: ByHand) -> str:
    """In words what the manifest's recipe has too much or too little; empty if it is the expected one."""
    words = []
    found_calls = set(recipe.get("syscalls", ()))
    for what, found, wanted in (
        ("capability", set(recipe["cap_add"]), set(expected.cap_add)),
        ("system call", found_calls, set(expected.syscalls)),
        ("security option", not_filters(recipe["security_opt"]), set(expected.security_opt)),
        ("sysctl", set(recipe["sysctls"]), set()),
    ):
        words += [f"{what} {name} too much" for name in sorted(found - wanted)]
        words += [f"{what} {name} missing" for name in sorted(wanted - found)]
    nodes = [device.split(":")[0] for device in recipe["devices"]]
    words += [f"device {node} too much" for node in nodes if not matches(node, expected.devices)]
    words += [
        f"device {wanted} missing" for wanted in expected.devices if not any(matches(n, (wanted,)) for n in nodes)
    ]
    return ", ".join(words)


def not_filters(options: list[str]) -> set[str]:
    """The security options but for the profile with the recipe's calls, whose path differs from run to run."""
    return {option for option in options if not option.startswith("seccomp=") or option == "seccomp=unconfined"}


def matches(node: str, patterns: tuple[str, ...]) -> bool:
    """Whether `node` matches one of the fnmatch(3) `patterns`."""
    return any(fnmatch.fnmatch(node, pattern) for pattern in patterns)
