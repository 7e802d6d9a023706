"""The short report for people: what is needed, why, how far it is proved, and the line to run instead."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from profiler.catalogue.paths import CONTROL_GROUPS
from profiler.model import AllowList, Rerun, Status, Syscalls
from profiler.report.evidence import document_of, headline, printable, tellingness
from profiler.report.interface import JudgedRequirement, Report
from profiler.report.lines import setpriv_line, shell_lines, systemd_run_line
from profiler.report.manifest import in_order, is_proved, verification_status

PLAIN_WIDTH = 100  # columns, where the reader is a file or a pipe
_STYLES = {Status.REQUIRED: "bold", Status.UNPROVEN: "yellow", Status.OPTIONAL: "dim"}
_RUNS_SHOWN = 4
_HOSTS_TREES = ("/sys", "/proc/sys")


def render(report: Report, *, width: int = PLAIN_WIDTH, colour: bool = False) -> str:
    """The report as text of `width` columns, with escape sequences for a terminal only if `colour`.

    Nothing that the workload chose (paths, arguments) can contribute an escape sequence of its own.
    """
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
        _environ={},
    )
    _head(console, report)
    kept = report.verdict.kept
    rows = [row for row in in_order(report.requirements) if row.status is not Status.OPTIONAL or row.privilege in kept]
    if rows:
        console.print(_table(rows))
    for style, line in (*_verification(report), *_meaning(report), *_left_out(report), *_remarks(report)):
        console.print(Text(printable(line), style=style))
    for title, line in _commands(report, width):
        console.print(Text(f"\n{title}"), Text(line), sep="\n", soft_wrap=True)
    text = console.file
    assert isinstance(text, io.StringIO)
    # Columns are padded to their width; nobody wants the spaces at the end.
    return "".join(f"{line.rstrip(' ')}\n" for line in text.getvalue().splitlines())


def _head(console: Console, report: Report) -> None:
    recipe = [privilege for privilege in report.verdict.recipe if not isinstance(privilege, AllowList)]
    if recipe:
        many = "1 privilege" if len(recipe) == 1 else f"{len(recipe)} privileges"
        console.print(Text(f"{many} instead of all of --privileged", style="bold"))
    elif report.verdict.verified:
        console.print(Text("needs no privilege: drop --privileged", style="bold green"))
    else:
        console.print(Text("no privilege was found to be needed, but that is not verified", style="bold yellow"))


def _table(rows: list[JudgedRequirement]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("PRIVILEGE", overflow="fold", min_width=12)
    table.add_column("STATUS", no_wrap=True)
    table.add_column("WHY", overflow="fold", ratio=3)
    table.add_column("PROCESS", overflow="fold")
    for privilege in dict.fromkeys(row.privilege for row in rows):
        same = [row for row in rows if row.privilege == privilege]
        status = same[0].status
        pieces = [document_of(piece) for row in same for piece in row.requirement.evidence]
        best = max(pieces, key=tellingness, default=None)
        alike = sum(best is not None and tellingness(piece) == tellingness(best) for piece in pieces)
        more = f" (and {alike - 1} more)" if alike > 1 else ""
        table.add_row(
            Text(printable(privilege.label)),
            Text(status.value, style=_STYLES[status]),
            Text(printable(headline(best) + more if best else same[0].requirement.reason)),
            Text(printable(best["process"]["exe"] if best else "")),
        )
    return table


def _seconds(runs: tuple[Rerun, ...]) -> str:
    taken = [run.outcome.seconds for run in runs]
    if len(taken) > _RUNS_SHOWN:
        return f"{_duration(sum(taken))} in all"
    return ", ".join(map(_duration, taken))


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds:.2f} s"


def _verification(report: Report) -> Iterator[tuple[str, str]]:
    verdict = report.verdict
    many = "1 run" if len(verdict.runs) == 1 else f"{len(verdict.runs)} runs"
    match verification_status(verdict):
        case "verified":
            proof = "proved" if is_proved(report) else "unproved"
            yield "green", f"verified in {many} ({_seconds(verdict.runs)}); minimal: {proof}"
        case "failed":
            codes = ", ".join(
                "time limit" if run.outcome.timed_out else f"exit code {run.outcome.exit_code}"
                for run in verdict.runs[-_RUNS_SHOWN:]
            )
            yield "bold red", f"not verified: {many} ({_seconds(verdict.runs)}), none passed with this recipe ({codes})"
        case _:
            yield "bold red", f"not verified: exit code {report.trace.exit_code} even with every privilege"


def _meaning(report: Report) -> Iterator[tuple[str, str]]:
    """What passing meant, where it was not the exit code alone, and what an allow-list of calls leaves."""
    passes = report.verdict.passes
    if len(passes) > 1 or report.trace.stopped is not None or report.trace.interrupted is not None:
        yield "", f"a rerun passed if {' and '.join(passes)}"
    observed = report.verdict.observed
    if observed is not None:
        own = len({*observed.workload, *observed.i386})
        yield "", f"its seccomp profile allows {len(observed.names)} system calls, {own} of them seen in the workload"


def _left_out(report: Report) -> Iterator[tuple[str, str]]:
    """What some call asked for and the workload passes without, with what it was asked for: one call's in one line."""
    grouped: dict[str, list[str]] = {}  # a list for capset(2) asks for all of its members at once
    calls: list[tuple[str, str]] = []
    for privilege, tried in sorted(report.verdict.optional.items(), key=lambda item: item[0].label):
        if privilege in report.less_confined:
            continue  # a warning tells of it
        if isinstance(privilege, Syscalls):
            calls.append((privilege.label, tried))
        else:
            grouped.setdefault(tried, []).append(privilege.label)
    if calls:  # one line: libnuma alone asks for two in many a program, and `explain` tells each
        such = "" if len(calls) == 1 else "such as "
        grouped[such + calls[0][1]] = [label for label, _ in calls]
    for tried, labels in grouped.items():
        passes = "passes without it" if len(labels) == 1 else "passes without them"
        known = passes if report.verdict.verified else "doubtful, not tried"
        yield "", f"left out: {' '.join(labels)} ({known}): {tried}"


def _remarks(report: Report) -> Iterator[tuple[str, str]]:
    for name, count in sorted(report.trace.losses.items()):
        if count:
            yield "yellow", f"lost: {name} ×{count}: the trace is incomplete, so nothing is called minimal"
    if report.fails_anyway:
        for line in (*_refused(report), *_read_only(report)):
            yield "yellow", line
    if report.facts.not_granted:
        yield "", f"not granted in any run, nobody here can: {', '.join(report.facts.not_granted)}"
    for note in report.notes:
        yield "", f"note: {note}"
    for warning in report.all_warnings:
        yield "yellow", f"warning: {warning}"
    for advice in report.safer:
        flag = f" ({advice.flag})" if advice.flag else ""
        yield "cyan", f"safer: {advice.text}{flag}: {advice.reason}"


def _refused(report: Report) -> Iterator[str]:
    """The calls that failed for a capability that nobody here can grant: the first one of each."""
    seen: dict[str, str] = {}
    for observation in report.trace.observations:
        granted = {check.site for check in observation.checks if check.granted}
        for check in observation.checks:
            # what is granted at the same place stands in for it
            missing = check.capability in report.facts.not_granted and not check.granted and check.site not in granted
            if missing and (observation.result or 0) < 0:
                by = f" by {observation.process.exe}" if observation.process.exe else ""
                seen.setdefault(check.capability, f"{headline(document_of(observation))}{by}")
    for capability, call in seen.items():
        yield f"refused, as nobody here can grant {capability}: {call}"


def _read_only(report: Report) -> Iterator[str]:
    """The first call that failed because a container's /sys, or the host's in the embedded sandbox, is not writable."""
    for observation in report.trace.observations:
        path = observation.path or ""
        tree = next((tree for tree in (CONTROL_GROUPS, *_HOSTS_TREES) if path.startswith(f"{tree}/")), None)
        if observation.result != -errno.EROFS or tree is None:
            continue
        call = headline(document_of(observation))
        if not report.docker_command:
            yield f"refused, as the sandbox leaves this host's {tree} as it is (profile it in a container): {call}"
            return
        if path.startswith("/sys/"):
            yield f"refused, as only --privileged itself mounts {tree} writable (-v {tree}:{tree} does so, too): {call}"
            return


def _commands(report: Report, width: int) -> Iterator[tuple[str, str]]:
    """The lines to run instead; surrogates of words that are not UTF-8 cannot be printed and become `\\xNN`."""
    verified = report.verdict.verified
    if report.docker_command:
        yield "run this instead:" if verified else "not verified:", _safe(report.docker_command, width)
        return
    recipe = report.verdict.recipe
    if not verified:
        yield "not verified:", _safe(setpriv_line(recipe, report.command), width)
        return
    yield "with setpriv:", _safe(setpriv_line(recipe, report.command), width)
    yield "with systemd:", _safe(systemd_run_line(recipe, report.command), width)
    yield "flags for docker run:", _safe(report.docker_args, width)


def _safe(words: tuple[str, ...], width: int) -> str:
    return "\n".join(printable(line) for line in shell_lines(words, width).split("\n"))
