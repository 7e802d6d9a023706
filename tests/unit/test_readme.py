"""The README says what the program says: its generated parts are those that `tests/readme.py --write` would write."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from profiler import __version__
from profiler.report.manifest import SCHEMA, SCHEMA_DOCUMENT

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

specification = importlib.util.spec_from_file_location("readme_writer", ROOT / "tests" / "readme.py")
assert specification is not None
assert specification.loader is not None
readme = importlib.util.module_from_spec(specification)
specification.loader.exec_module(readme)


def squeezed(text: str) -> str:
    """Without white space: where a help text is wrapped is up to click's version."""
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("name", readme.PARTS)
def test_generated_parts_are_fresh(name):
    there = readme.named_parts(README)
    assert name in there, f"README.md has no part {name}"
    assert squeezed(there[name]) == squeezed(readme.PARTS[name]()), "run: make docs"


def test_the_plan_names_every_room():
    there = readme.named_parts((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert {name: squeezed(text) for name, text in there.items()} == {
        name: squeezed(write()) for name, write in readme.ARCHITECTURE_PARTS.items()
    }, "run: make docs"


def test_every_part_is_known():
    assert set(readme.named_parts(README)) == {*readme.PARTS, *readme.RECORDED}


def test_rewriting_changes_its_own_kind_only():
    text = "a\n<!-- generated: x -->\nold\n<!-- /generated -->\n<!-- recorded: y -->\nkept\n<!-- /recorded -->\nb\n"
    assert readme.rewritten(text, {"x": lambda: "new\n"}) == text.replace("old", "new")
    assert readme.rewritten(text, {"y": lambda: "new\n"}, "recorded") == text.replace("kept", "new")
    with pytest.raises(KeyError):
        readme.rewritten(text, {})


def test_rewriting_twice_changes_nothing():
    once = readme.rewritten(README, readme.PARTS)
    assert readme.rewritten(once, readme.PARTS) == once


def test_every_local_link_leads_somewhere():
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "docs" / "manifest.md"]
    for document in documents:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_changelog_has_this_version():
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_documents_name_the_schema():
    text = (ROOT / "docs" / "manifest.md").read_text(encoding="utf-8")
    assert SCHEMA in text
    assert SCHEMA_DOCUMENT.name in text
