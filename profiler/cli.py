"""The command line: parse, call, print, exit. The only module that prints or ends the process.

The workload's own standard output and error pass through untouched; our words go to standard error, except for
`explain`, `doctor` and `--help`, whose result is standard output.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from profiler import __version__
from profiler.errors import (
    EXIT_HOST,
    EXIT_INTERNAL,
    EXIT_USAGE,
    EXIT_VERIFIED,
    ProfilerError,
    UnverifiedError,
    UsageError,
    WorkloadError,
)
from profiler.options import DEFAULT_PROVE_BUDGET, Network, Options, Prove, Seccomp, Tracer, duration
from profiler.output import check_writable
from profiler.report import explain as evidence
from profiler.report import lines, manifest, table
from profiler.signals import Ended, orderly_end

if TYPE_CHECKING:
    from profiler.harness.interface import Sandbox
    from profiler.report.interface import Report

_NAME = "capprofile"
_HOSTS_LIMITS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """30, 30s, 500ms, 5m or 1h, as seconds; click's own BadParameter for anything else, so that the option is named."""
    if value is None:
        return None
    try:
        return duration(value)
    except UsageError as error:
        raise click.BadParameter(f"{error.message} ({error.hint})", context, parameter) from error


def _write(text: str, *, err: bool) -> None:
    """Write to standard output or error. A reader that has gone away ends us as the signal would."""
    stream = sys.stderr if err else sys.stdout
    try:
        click.echo(text, nl=False, err=err)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: a terminal that hung up
            raise
        # Python flushes at exit and would complain of the same pipe again.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        raise Ended(signal.SIGPIPE) from None


def _say(line: str) -> None:
    _write(f"{_NAME}: {line}\n", err=True)


def _print(text: str) -> None:
    _write(text, err=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name=_NAME)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def capprofile(debug: bool) -> None:
    """Find, prove and explain the least privileges that a container or a command needs instead of --privileged."""


@capprofile.command(
    context_settings={"allow_interspersed_args": False}, short_help="Profile a command and prove its recipe."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the manifest to FILE.")
@click.option(
    "--prove/--no-prove",
    default=None,
    help="Try every member's removal, or none.  [default: as many as fit into --prove-budget]",
)
@click.option(
    "--prove-budget",
    callback=_seconds,
    metavar="DURATION",
    default=f"{DEFAULT_PROVE_BUDGET:.0f}s",
    show_default=True,
    help="How long removals may take in all, without --prove.",
)
@click.option("--jobs", type=int, metavar="N", help="Reruns at a time.  [default: one a processor]")
@click.option(
    "--timeout", callback=_seconds, metavar="DURATION", help="Stop a run that takes longer: it has then failed."
)
@click.option(
    "--for",
    "run_for",
    callback=_seconds,
    metavar="DURATION",
    help="Stop a service after this time; a rerun passes if it runs as long.",
)
@click.option(
    "--until-healthy",
    is_flag=True,
    help="Stop a service once its health check passes, as it must in reruns (Docker only).",
)
@click.option(
    "--repeat",
    type=int,
    default=1,
    metavar="N",
    help="Trace N runs and merge what they show; reruns stay one a recipe.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Watch each rerun that passes once more; it fails when a call is denied in it that had succeeded.",
)
@click.option(
    "--exit-code",
    type=int,
    default=0,
    metavar="N",
    help="How the workload ends when it has done its work, 124 below timeout(1) for example.  [default: 0]",
)
@click.option("--keep-optional", is_flag=True, help="Keep what is asked for even if the workload passes without it.")
@click.option(
    "--check",
    metavar="CMD",
    help="Run CMD on this host after each run, or before a service is stopped: only 0 is passed.",
)
@click.option(
    "--check-inside",
    metavar="CMD",
    help="The same inside a service's container, before it is stopped (docker exec, with its recipe's privileges).",
)
@click.option(
    "--compare-output",
    is_flag=True,
    help="A rerun passes only with the same standard output as another run with every privilege.",
)
@click.option(
    "--expect",
    metavar="FILE",
    multiple=True,
    help="A run passes only if it produced FILE, as the workload names it, as the traced run did (repeatable).",
)
@click.option(
    "--seccomp",
    type=click.Choice([choice.value for choice in Seccomp]),
    default=Seccomp.PROFILE.value,
    show_default=True,
    help="Calls that the engine's own filter denies: deny them, open just these, allow what was observed and nothing "
    "else (Docker only), or use no filter.",
)
@click.option(
    "--tracer",
    type=click.Choice([choice.value for choice in Tracer]),
    default=Tracer.WATCH.value,
    show_default=True,
    help="How the first run finds what is needed: it has every privilege and is watched, or it has no capability and "
    "makes each refused call again with the one that it was refused for, which is slower and leaves less to reruns.",
)
@click.option(
    "--network",
    type=click.Choice([choice.value for choice in Network]),
    default=Network.PRIVATE.value,
    show_default=True,
    help="The network of the embedded sandbox.",
)
@click.option("--quiet", is_flag=True, help="No progress lines, only the report.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
def run(
    *,
    output: Path | None,
    prove: bool | None,
    prove_budget: float,
    jobs: int | None,
    timeout: float | None,
    run_for: float | None,
    until_healthy: bool,
    repeat: int,
    strict: bool,
    exit_code: int,
    keep_optional: bool,
    check: str | None,
    check_inside: str | None,
    compare_output: bool,
    expect: tuple[str, ...],
    seccomp: str,
    tracer: str,
    network: str,
    quiet: bool,
    command: tuple[str, ...],
) -> None:
    """Profile COMMAND: run it with every privilege, find what it needs, and run it again with exactly that.

    A COMMAND that is a `docker run …` is profiled in its container; anything else runs in a throwaway sandbox of its
    own, without an engine and without changing this host. Options of capprofile stand before COMMAND; separate the two
    with --.
    """
    options = Options(
        output=output,
        prove=Prove.BUDGET if prove is None else Prove.ALL if prove else Prove.NONE,
        prove_budget=prove_budget,
        jobs=jobs if jobs is not None else os.cpu_count() or 1,
        timeout=timeout,
        run_for=run_for,
        until_healthy=until_healthy,
        repeat=repeat,
        strict=strict,
        exit_code=exit_code,
        keep_optional=keep_optional,
        check=check,
        check_inside=check_inside,
        compare_output=compare_output,
        expect=expect,
        seccomp=Seccomp(seccomp),
        tracer=Tracer(tracer),
        network=Network(network),
        quiet=quiet,
    )
    if output is not None:
        check_writable(output)
    report = _profiled(command, options)
    document = manifest.render(report)
    _write(table.render(report, width=_width(), colour=_colour()), err=True)
    if output is not None:
        manifest.write(output, document)
        _say(f"wrote the manifest to {output}")
        profile = manifest.Manifest(document).seccomp_profile
        if profile is not None:
            _say(f"its seccomp profile is {profile}")
    _judge(report, options)


def _judge(report: Report, options: Options) -> None:
    """Turn a verdict that is not `verified` into the error that says so: its exit code is this program's."""
    if report.verdict.verified:
        return
    if report.fails_anyway:
        code = report.trace.exit_code
        privileged = "with --privileged" if report.engine != "native" else "as root"
        alone = report.engine == "native" and options.network is Network.PRIVATE
        raise WorkloadError(
            f"the workload fails even with every privilege (exit code {code})",
            f"make it pass {privileged} first; a service that never ends needs --for or --until-healthy"
            + ("; here it reaches nobody but itself: --network host gives it this host's network" if alone else "")
            + (f"; if {code} is how it should end, say --exit-code {code}" if code else ""),
        )
    raise UnverifiedError(
        "no verified recipe: the workload did not pass with the privileges above",
        "look at the evidence with capprofile explain, or say what counts as passed (--timeout, --for, --check)",
    )


def _profiled(command: tuple[str, ...], options: Options) -> Report:
    """Profile `command` where it belongs, and leave nothing behind: neither of the sandbox nor of killed runs."""
    from profiler import cleaning  # noqa: PLC0415 - `explain` and `--help` need neither ptrace nor the engine's SDK

    with contextlib.closing(_sandbox(command, options)) as sandbox:
        from profiler import pipeline  # noqa: PLC0415

        cleaning.before_run()
        return pipeline.profile(sandbox, options, (lambda line: None) if options.quiet else _say)


def _sandbox(command: tuple[str, ...], options: Options) -> Sandbox:
    from profiler.harness.docker.arguments import behind_wrapper, names_engine  # noqa: PLC0415
    from profiler.harness.docker.sandbox import DockerSandbox  # noqa: PLC0415
    from profiler.harness.native.sandbox import NativeSandbox  # noqa: PLC0415

    if names_engine(command):
        if options.network is not Network.PRIVATE:
            raise UsageError("--network is for the embedded sandbox", "give --network to docker run instead")
        return DockerSandbox(command)
    if behind_wrapper(command):
        raise UsageError(
            f"{command[0]} stands before the docker command, whose container would not be seen",
            f"leave it out: capprofile run -- {' '.join(behind_wrapper(command)[:2])} …",
        )
    for name, given in (("--until-healthy", options.until_healthy), ("--check-inside", options.check_inside)):
        if given:
            raise UsageError(f"{name} needs a container", "profile a docker run, or use --for and --check")
    if options.seccomp is Seccomp.OBSERVED:
        raise UsageError(
            "--seccomp observed needs a container: the embedded sandbox has no filter to verify it with",
            "profile a docker run, or leave it out",
        )
    return NativeSandbox(command, cwd=_working_directory(), env=os.environ.copy(), network=options.network.value)


def _working_directory() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        raise UsageError("the working directory does not exist any more", "go to another one: cd /") from None


@capprofile.command(short_help="Show the evidence in a manifest, or its recipe in another format.")
@click.argument("file", metavar="MANIFEST", type=click.Path(path_type=Path))
@click.argument("privilege", required=False)
@click.option(
    "--format",
    "target",
    type=click.Choice(list(lines.FORMATS)),
    help="Print the recipe in another program's words instead of the evidence.",
)
def explain(file: Path, privilege: str | None, target: str | None) -> None:
    """Show the evidence in MANIFEST, of every privilege or of PRIVILEGE alone.

    PRIVILEGE may be SYS_ADMIN, CAP_SYS_ADMIN, a device's path, a system call or a label of the report.
    """
    read = manifest.load(file)
    if target is None:
        _print(evidence.explain(read, privilege))
        return
    if privilege is not None:
        raise UsageError("--format prints the whole recipe", "leave PRIVILEGE out, or leave --format out")
    _print(lines.FORMATS[target](read))


@capprofile.command(short_help="Say what this host and its engine can do.")
@click.option("--clean", is_flag=True, help="Remove what killed runs left: containers, tracefs instances, directories.")
def doctor(clean: bool) -> None:
    """Say what this host and its engine can do, and how to mend what is missing."""
    from profiler import cleaning  # noqa: PLC0415 - see _profiled
    from profiler import doctor as surgery  # noqa: PLC0415

    if clean:
        removed = cleaning.everything()
        _print("".join(f"removed {name}\n" for name in removed) or "nothing was left to remove\n")
        return
    diagnosis = surgery.examine()
    _print(surgery.render(diagnosis))
    if not diagnosis.possible:
        click.get_current_context().exit(EXIT_HOST)


def _colour() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _width() -> int:
    return max(60, shutil.get_terminal_size().columns) if sys.stderr.isatty() else table.PLAIN_WIDTH


def _refused(message: str, hint: str) -> None:
    _say(message)
    if hint:
        _write(f"  hint: {hint}\n", err=True)


def answer(arguments: Sequence[str]) -> int:
    """Do what the command line `arguments` (without the program's name) says; the exit code of the README's table."""
    own = list(arguments)
    own = own[: own.index("--")] if "--" in own else own
    try:
        with orderly_end():
            return _done(arguments, debug="--debug" in own)
    except Ended as ended:
        if ended.number != signal.SIGPIPE:
            with contextlib.suppress(Ended):
                _say(f"stopped by {signal.Signals(ended.number).name}")
        return 128 + ended.number
    except (KeyboardInterrupt, click.Abort):
        with contextlib.suppress(Ended):
            _say("stopped by SIGINT")
        return 128 + signal.SIGINT


def _done(arguments: Sequence[str], *, debug: bool) -> int:
    if not arguments:
        _write(capprofile.get_help(click.Context(capprofile, info_name=_NAME)) + "\n", err=True)
        return EXIT_USAGE
    try:
        code = capprofile.main(list(arguments), prog_name=_NAME, standalone_mode=False)
        return code if isinstance(code, int) else EXIT_VERIFIED
    except click.Abort:  # click's own form of an interruption
        raise
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        words = context.command_path if context is not None else _NAME
        _refused(error.format_message(), f"{words} --help tells what there is")
        return EXIT_USAGE
    except ProfilerError as error:
        if debug:
            traceback.print_exc()
        _refused(error.message, error.hint)
        return error.exit_code
    except Exception as error:  # the last line of defence
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno in _HOSTS_LIMITS:
            where = f" ({error.filename})" if error.filename is not None else ""
            _refused(f"this host refuses: {error.strerror}{where}", "make room, or raise the limit, and run again")
            return EXIT_HOST
        _refused(
            f"internal error: {type(error).__name__}: {error}", "" if debug else "capprofile --debug … shows where"
        )
        return EXIT_INTERNAL


def main() -> NoReturn:
    """The program `capprofile`."""
    for descriptor in range(3):  # what is opened later must not take the place of a standard stream
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 shall not cost the report
    sys.exit(answer(sys.argv[1:]))


if __name__ == "__main__":
    main()
