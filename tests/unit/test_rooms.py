"""The rooms keep apart: who imports whom, who prints, and where nothing is decided (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "profiler"
MODULES = sorted(PACKAGE.rglob("*.py"))
OURS = "profiler"


def room(path: Path) -> str:
    """The first folder below the package, or the module's own name at its top."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[str]:
    """Every module that `path` imports, with what is taken from a package of ours, wherever the statement stands."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def names(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


every_module = pytest.mark.parametrize("path", MODULES, ids=names)


def test_there_is_something_to_hold():
    assert {room(path) for path in MODULES} >= {"kernel", "harness", "report", "catalogue", "synthesizer", "verifier"}


@pytest.mark.parametrize("module", ["errors", "leftovers"])
def test_the_foundations_import_nothing_of_ours(module):
    assert [name for name in imports(PACKAGE / f"{module}.py") if below(name, OURS)] == []


@every_module
def test_only_kernel_touches_ctypes_and_ptrace(path):
    if room(path) != "kernel":
        assert [name for name in imports(path) if below(name, "ctypes", "ptrace")] == []


@every_module
def test_only_harness_talks_to_an_engine(path):
    if room(path) != "harness":
        assert [name for name in imports(path) if below(name, "docker")] == []


# The embedded sandbox's helper is a program of its own, started with `python -m`: it ends, but it does not print.
PROGRAMS = {"cli.py", "harness/native/child.py"}


@every_module
def test_only_the_programs_print_or_end_the_process(path):
    found = set(calls(path)) & {"print", "click.echo", "sys.exit", "exit", "quit"}
    raised = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Name) and node.id == "SystemExit"]
    if names(path) not in PROGRAMS:
        assert found == set()
        assert raised == []
    elif names(path) != "cli.py":
        assert found <= {"sys.exit"}


@every_module
def test_only_the_command_line_knows_click(path):
    if names(path) != "cli.py":
        assert [name for name in imports(path) if below(name, "click")] == []


# Whom each room may know, of ours. A room that is not named here stands at the top and may know all.
MAY_KNOW = {
    "model": {"model"},
    "kernel": {"kernel", "errors", "model", "harness.interface"},
    "catalogue": {"catalogue", "errors", "model", "kernel.bpf"},  # the traced calls are rules of a filter
    "synthesizer": {"synthesizer", "catalogue", "errors", "model"},
    "verifier": {"verifier", "catalogue", "errors", "model", "harness.interface"},
    "report": {"report", "catalogue", "errors", "model", "output"},
    "options": {"errors"},
    "output": {"errors"},
}


@every_module
def test_arrows_run_one_way(path):
    allowed = MAY_KNOW.get(room(path))
    if allowed is None:
        return
    known = {f"{OURS}.{name}" for name in allowed} | {f"{OURS}.__version__"}
    strangers = [name for name in imports(path) if below(name, OURS) and not below(name, *known)]
    assert strangers == []


@pytest.mark.parametrize("room_name", ["tracer", "witness", "harness"])
def test_nobody_below_knows_the_top(room_name):
    top = {f"{OURS}.{name}" for name in ("cli", "pipeline", "doctor", "report", "verifier", "synthesizer")}
    for path in MODULES:
        if room(path) == room_name:
            assert [name for name in imports(path) if below(name, *top)] == [], path


@every_module
def test_a_catalogue_decides_nothing_while_it_is_loaded(path):
    """Tables stand at a module's top: comprehensions may build them, statements that branch or loop may not.

    What is done with a table is in functions, and of those a catalogue has few: looking up, loading and checking.
    """
    if room(path) != "catalogue":
        return
    flow = (ast.If, ast.For, ast.While, ast.Try, ast.With, ast.Match)
    tables = [statement for statement in parsed(path).body if not is_type_checking(statement)]
    assert [ast.unparse(statement)[:60] for statement in tables if isinstance(statement, flow)] == []


def is_type_checking(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"


@every_module
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(parsed(path)), "the first lines of a file say what lives there"


def test_there_is_no_room_without_a_purpose():
    for path in MODULES:
        assert path.stem not in {"utils", "util", "helpers", "helper", "manager", "misc", "common"}


def test_the_seccomp_folder_is_data():
    """A Python package named `seccomp` would hide libseccomp's bindings."""
    assert list((ROOT / "seccomp").rglob("*.py")) == []
