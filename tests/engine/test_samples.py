"""The samples: what was found for them by hand still holds on this host, and capprofile finds the same."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import by_hand
import pytest
from by_hand import Sample

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
every_sample = pytest.mark.parametrize("sample", by_hand.samples(), ids=lambda sample: sample.name)


@every_sample
def test_recipe_found_by_hand_passes_and_needs_each_member(sample: Sample) -> None:
    recipes = sample.recipes(by_hand.has_apparmor())
    whole, recipe = by_hand.run(sample, recipes[0]), recipes[0]
    for other in recipes[1:]:  # the first that passes here: what a program calls differs from release to release
        if whole.returncode != sample.expected["exit_code"]:
            whole, recipe = by_hand.run(sample, other), other
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
    for recipe in sample.recipes(by_hand.has_apparmor())[1:]:
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
    wrong = [by_hand.difference(recipe, expected) for expected in sample.recipes(by_hand.has_apparmor())]
    assert "" in wrong, wrong[0]


def profiled(sample: Sample, manifest: Path) -> dict[str, Any]:
    """The manifest that `capprofile run` writes for the sample."""
    done = by_hand.profile(sample, manifest, "--prove", "--jobs", "4")  # they wait more than they work
    assert done.returncode == 0, f"capprofile ended with {done.returncode}:\n{done.stderr[-4000:]}"
    document: dict[str, Any] = json.loads(manifest.read_text("utf-8"))
    return document
