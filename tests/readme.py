"""Writes the generated parts of README.md and docs/architecture.md: with `--write` what follows from the code, with
`--record` the example, with `--measure` the table of what tracing costs, with `--samples` that of the samples' reruns.

A part stands between `<!-- generated: name -->` and `<!-- /generated -->`; `test_readme.py` fails when one is stale.
Example and table are recorded from real runs (root on a Linux host is needed; measuring takes long), so they are
written only when asked for.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from click.testing import CliRunner  # noqa: E402 - after the path to this very checkout

from profiler import cli, errors  # noqa: E402
from profiler.harness.docker.flags import flags_of  # noqa: E402
from profiler.model import (  # noqa: E402
    BindMount,
    Capability,
    Device,
    DeviceClass,
    Privilege,
    SecurityOption,
    Syscalls,
    Sysctl,
)

README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
HELP_WIDTH = 100
_PART = re.compile(
    r"(<!-- (?P<kind>generated|recorded): (?P<name>[a-z-]+) -->\n)(?P<body>.*?)(<!-- /(?P=kind) -->)", re.S
)

# What the README shows of a real run: a command each, run in this order in an empty directory, as root.
EXAMPLE = (
    ("capprofile", "run", "-o", "demo.json", "--", "sh", "-c", "mount -t tmpfs none /mnt && chown nobody /mnt"),
    ("capprofile", "explain", "demo.json", "SYS_ADMIN"),
)


def _code(text: str) -> str:
    return f"```\n{text.rstrip()}\n```\n"


def help_text(*words: str) -> str:
    """What `capprofile WORDS --help` prints in a window of HELP_WIDTH columns."""
    shown = CliRunner().invoke(cli.capprofile, [*words, "--help"], prog_name="capprofile", terminal_width=HELP_WIDTH)
    if shown.exit_code != 0:
        raise SystemExit(f"capprofile {' '.join(words)} --help failed: {shown.output}")
    return _code(shown.output)


def exit_codes() -> str:
    """The table of exit codes: the numbers and meanings of profiler/errors.py, and the signals of profiler/cli.py."""
    rows = [
        (errors.EXIT_VERIFIED, "The recipe is verified; `explain` and `doctor` did what was asked."),
        (errors.EXIT_INTERNAL, "An error in capprofile itself (`--debug` shows where)."),
        *(
            (failure.exit_code, (failure.__doc__ or "").strip())
            for failure in (errors.UsageError, errors.HostError, errors.WorkloadError, errors.UnverifiedError)
        ),
        (130, "Stopped by SIGINT."),
        (143, "Stopped by SIGTERM."),
    ]
    return "".join(["| Code | Meaning |\n| --- | --- |\n", *(f"| {code} | {meaning} |\n" for code, meaning in rows)])


EXAMPLES: tuple[tuple[str, Privilege], ...] = (
    ("A capability", Capability("SYS_ADMIN")),
    ("A device node, with the access used", Device("/dev/fuse", "rw")),
    ("A pool of nodes: any may be free next time", DeviceClass("b", 7, None, "rw", ("/dev/loop0",))),
    ("System calls that the engine's filter denies", Syscalls(("keyctl",))),
    ("A protection that must be off", SecurityOption("systempaths=unconfined")),
    ("A kernel parameter that the engine can set", Sysctl("net.ipv4.ip_forward", "1")),
    ("A setting of the host's below /sys", BindMount("/sys/block/sda/queue/scheduler")),
    ("Control groups, where the engine cannot make the container's own writable", BindMount("/sys/fs/cgroup", True)),
)


def privileges() -> str:
    """The table of privilege kinds: the label in manifest and table, and what it becomes after `--cap-drop ALL`."""
    lines = ["| What | Label | Flags of `docker run`, after `--cap-drop ALL` |\n| --- | --- | --- |\n"]
    for what, privilege in EXAMPLES:
        flags = flags_of(frozenset({privilege}), "FILE")[2:]
        lines.append(f"| {what} | `{privilege.label}` | `{shlex.join(flags)}` |\n")
    return "".join(lines)


PARTS: Mapping[str, Callable[[], str]] = {
    "help": help_text,
    "help-run": lambda: help_text("run"),
    "help-explain": lambda: help_text("explain"),
    "help-doctor": lambda: help_text("doctor"),
    "exit-codes": exit_codes,
    "privileges": privileges,
}


def rooms() -> str:
    """The table of all modules: what lives there, in the first words of each."""
    lines = ["| Room | What lives there |\n| --- | --- |\n"]
    for path in sorted((ROOT / "profiler").rglob("*.py"), key=lambda path: (len(path.parts), path)):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        name = path.relative_to(ROOT / "profiler")
        if name.name == "__init__.py":
            name = name.parent
        if str(name) != ".":
            summary = " ".join(text.partition("\n\n")[0].split())
            lines.append(f"| `{name}{'' if name.suffix else '/'}` | {summary} |\n")
    return "".join(lines)


ARCHITECTURE_PARTS: Mapping[str, Callable[[], str]] = {"rooms": rooms}


def recorded_example() -> str:
    """Run EXAMPLE for real and return what a user would see: the prompt, the words, and all that is printed."""
    shown: list[str] = []
    program = Path(sys.executable).with_name("capprofile")
    with tempfile.TemporaryDirectory() as directory:
        for words in EXAMPLE:
            done = subprocess.run(
                (program, *words[1:]),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                env={**os.environ, "NO_COLOR": "1"},
            )
            if done.returncode != 0:
                raise SystemExit(f"{shlex.join(words)} answered {done.returncode}:\n{done.stdout}")
            shown.append(f"# {shlex.join(words)}\n{done.stdout.rstrip()}\n")
    return _code("\n".join(shown))


def recorded_benchmarks(rounds: int = 3, divide: int = 2) -> str:
    """Run the benchmarks and return their table; a line a round goes to standard error."""
    words = (sys.executable, str(ROOT / "tests" / "benchmarks"), "--rounds", str(rounds), "--divide", str(divide))
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout


def recorded_samples() -> str:
    """Profile the samples with and without removal, and return their table; a line a sample goes to standard error."""
    words = (sys.executable, str(ROOT / "tests" / "benchmarks"), "--samples")
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout


RECORDED: Mapping[str, tuple[str, Callable[[], str]]] = {
    "example": ("--record", recorded_example),
    "benchmarks": ("--measure", recorded_benchmarks),
    "samples": ("--samples", recorded_samples),
}


def _kept(text: str) -> Callable[[], str]:
    return lambda: text


def rewritten(text: str, parts: Mapping[str, Callable[[], str]], kind: str = "generated") -> str:
    """`text` with every part of `kind` written anew. Raises KeyError for a name that nothing generates."""

    def part(found: re.Match[str]) -> str:
        if found["kind"] != kind:
            return found[0]
        return f"{found[1]}{parts[found['name']]()}{found[5]}"

    return _PART.sub(part, text)


def named_parts(text: str) -> dict[str, str]:
    """The parts that `text` has, by name, as they stand."""
    return {found["name"]: found["body"] for found in _PART.finditer(text)}


def main(words: list[str]) -> None:
    """Rewrite README.md and docs/architecture.md; the words may be given together."""
    if not words or set(words) - {"--write", *(word for word, _ in RECORDED.values())}:
        raise SystemExit("usage: tests/readme.py [--write] [--record] [--measure] [--samples]")
    text = README.read_text(encoding="utf-8")
    if "--write" in words:
        text = rewritten(text, PARTS)
        plan = ARCHITECTURE.read_text(encoding="utf-8")
        ARCHITECTURE.write_text(rewritten(plan, ARCHITECTURE_PARTS), encoding="utf-8")
    there = named_parts(text)
    recorded = {name: write if word in words else _kept(there[name]) for name, (word, write) in RECORDED.items()}
    text = rewritten(text, recorded, "recorded")
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
