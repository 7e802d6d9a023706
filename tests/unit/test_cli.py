"""The command line: what becomes of its words, what is printed where, and every documented exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sample_report import EVERYTHING, SYS_ADMIN, report

from profiler import cleaning, cli, doctor, errors
from profiler.cli import answer
from profiler.errors import HostError, UnverifiedError, UsageError, WorkloadError
from profiler.model import HostFacts, Trace, Verdict
from profiler.options import Network, Options, Prove, Seccomp, duration
from profiler.report import manifest, table
from profiler.signals import Ended
from profiler.witness.probes import Probe


@pytest.fixture
def profiled(monkeypatch):
    """Replaces the profiling itself; `calls` records what was asked, `answer` is a report or an exception."""

    class Profiled:
        def __init__(self):
            self.calls: list[tuple[tuple[str, ...], Options]] = []
            self.result: object = report()

        def __call__(self, command, options):
            self.calls.append((command, options))
            if isinstance(self.result, BaseException):
                raise self.result
            return self.result

    stand_in = Profiled()
    monkeypatch.setattr(cli, "_profiled", stand_in)
    return stand_in


# run


def test_everything_after_the_dashes_is_the_command(profiled):
    assert (
        answer(["run", "--quiet", "--", "docker", "run", "--privileged", "-o", "x", "--help"]) == errors.EXIT_VERIFIED
    )
    ((command, options),) = profiled.calls
    assert command == ("docker", "run", "--privileged", "-o", "x", "--help")
    assert options.quiet


def test_the_dashes_may_be_left_out(profiled):
    assert answer(["run", "mount", "-t", "tmpfs", "--debug"]) == errors.EXIT_VERIFIED
    assert profiled.calls[0][0] == ("mount", "-t", "tmpfs", "--debug")


def test_defaults(profiled):
    answer(["run", "--", "true"])
    assert profiled.calls[0][1] == Options(jobs=os.cpu_count() or 1)


def test_every_option_is_understood(profiled, tmp_path):
    words = "--prove --jobs 3 --timeout 2m --for 30s --repeat 2 --strict --keep-optional --check c --check-inside i"
    words += " --expect a --expect b --exit-code 3 --seccomp unconfined --network host --quiet --prove-budget 1h"
    target = tmp_path / "m.json"
    assert answer(["run", "-o", str(target), *words.split(), "--", "true"]) == errors.EXIT_VERIFIED
    assert profiled.calls[0][1] == Options(
        output=target,
        prove=Prove.ALL,
        prove_budget=3600.0,
        jobs=3,
        timeout=120.0,
        run_for=30.0,
        repeat=2,
        strict=True,
        exit_code=3,
        keep_optional=True,
        check="c",
        check_inside="i",
        expect=("a", "b"),
        seccomp=Seccomp.UNCONFINED,
        network=Network.HOST,
        quiet=True,
    )


def test_no_prove(profiled):
    answer(["run", "--no-prove", "--until-healthy", "--", "true"])
    assert profiled.calls[0][1].prove is Prove.NONE
    assert profiled.calls[0][1].until_healthy


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--"],
        ["--jobs", "0", "--", "true"],
        ["--jobs", "many", "--", "true"],
        ["--repeat", "0", "--", "true"],
        ["--exit-code", "256", "--", "true"],
        ["--timeout", "soon", "--", "true"],
        ["--timeout", "0", "--", "true"],
        ["--for", "5", "--until-healthy", "--", "true"],
        ["--for", "10s", "--timeout", "5s", "--", "true"],
        ["--seccomp", "maybe", "--", "true"],
        ["--network", "moon", "--", "true"],
        ["--unheard-of", "--", "true"],
        ["-o", "-", "--", "true"],
        ["-o", "/nowhere/at/all/m.json", "--", "true"],
        ["-o", "/proc/m.json", "--", "true"],
        ["-o", "/", "--", "true"],
    ],
)
def test_bad_words_are_refused_before_anything_runs(profiled, capfd, words):
    assert answer(["run", *words]) == errors.EXIT_USAGE
    assert profiled.calls == []
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("capprofile: ")
    assert "\n  hint: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (UsageError("bad", "better"), errors.EXIT_USAGE),
        (HostError("bad", "better"), errors.EXIT_HOST),
        (WorkloadError("bad", "better"), errors.EXIT_WORKLOAD),
        (UnverifiedError("bad", "better"), errors.EXIT_UNVERIFIED),
    ],
)
def test_every_expected_failure_is_two_lines_and_its_code(profiled, capfd, raised, code):
    profiled.result = raised
    assert answer(["run", "--", "true"]) == code
    assert capfd.readouterr() == ("", "capprofile: bad\n  hint: better\n")


def test_debug_shows_where(profiled, capfd):
    profiled.result = HostError("bad", "better")
    answer(["--debug", "run", "--", "true"])
    assert "Traceback" in capfd.readouterr().err


def test_debug_of_the_workload_is_not_ours(profiled, capfd):
    profiled.result = HostError("bad", "better")
    answer(["run", "--", "true", "--debug"])
    assert "Traceback" not in capfd.readouterr().err


def test_a_bug_is_one_line_and_a_hint(profiled, capfd):
    profiled.result = ZeroDivisionError("by zero")
    assert answer(["run", "--", "true"]) == errors.EXIT_INTERNAL
    assert capfd.readouterr().err == (
        "capprofile: internal error: ZeroDivisionError: by zero\n  hint: capprofile --debug … shows where\n"
    )


def test_the_report_goes_to_standard_error_and_the_manifest_to_its_file(profiled, tmp_path, capfd):
    profiled.result = report(EVERYTHING)
    target = tmp_path / "m.json"
    assert answer(["run", "-o", str(target), "--", "true"]) == errors.EXIT_VERIFIED
    out, err = capfd.readouterr()
    assert out == ""
    assert table.render(profiled.result) in err
    assert f"capprofile: wrote the manifest to {target}\n" in err
    assert "capprofile: its seccomp profile is manifest.seccomp.json\n" in err
    assert json.loads(target.read_text()) == manifest.render(profiled.result)


def test_without_a_file_nothing_is_written(profiled, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    answer(["run", "--", "true"])
    assert "SYS_ADMIN" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_failed_is_shown_written_and_5(profiled, tmp_path, capfd):
    profiled.result = report(verified=False, minimal=False)
    target = tmp_path / "m.json"
    assert answer(["run", "-o", str(target), "--", "true"]) == errors.EXIT_UNVERIFIED
    err = capfd.readouterr().err
    assert "not verified" in err
    assert "no verified recipe" in err
    assert manifest.load(target).document["verification"]["status"] == "failed"


def test_a_workload_that_fails_anyway_is_4(profiled, capfd):
    broken = report()
    profiled.result = report(
        trace=type(broken.trace)((), (), (), {}, 7, 1.0), verdict=Verdict(frozenset({SYS_ADMIN}), False, False, ())
    )
    assert answer(["run", "--", "false"]) == errors.EXIT_WORKLOAD
    err = capfd.readouterr().err
    assert "not verified: exit code 7 even with every privilege" in err
    assert "capprofile: the workload fails even with every privilege (exit code 7)" in err


@pytest.mark.parametrize(
    ("native", "words", "hinted"),
    [(True, [], True), (True, ["--network", "host"], False), (False, [], False)],
)
def test_a_command_that_fails_alone_is_told_how_to_reach_others(profiled, capfd, native, words, hinted):
    trace = Trace((), (), (), {}, 7, 1.0)
    verdict = Verdict(frozenset({SYS_ADMIN}), False, False, ())
    profiled.result = report(native=native, trace=trace, verdict=verdict)
    assert answer(["run", *words, "--", "false"]) == errors.EXIT_WORKLOAD
    err = capfd.readouterr().err
    assert ("--network host gives it this host's network" in err) is hinted
    assert ("make it pass as root first" in err) is native


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (KeyboardInterrupt(), 128 + signal.SIGINT, "stopped by SIGINT"),
        (Ended(signal.SIGTERM), 128 + signal.SIGTERM, "stopped by SIGTERM"),
    ],
)
def test_an_interruption_has_its_own_code(profiled, capfd, raised, code, says):
    profiled.result = raised
    assert answer(["run", "--", "true"]) == code
    assert says in capfd.readouterr().err


def test_a_real_sigterm_unwinds_and_later_ones_do_not_disturb(monkeypatch, capfd):
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def work(command, options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # an impatient user, while we clean up
            os.kill(os.getpid(), signal.SIGINT)
            cleaned.append(True)

    monkeypatch.setattr(cli, "_profiled", work)
    assert answer(["run", "--", "true"]) == 128 + signal.SIGTERM
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped by SIGTERM" in capfd.readouterr().err


def test_the_sandbox_is_closed_whatever_happens(monkeypatch):
    closed = []

    class Sandbox:
        def close(self):
            closed.append(True)

    class Pipeline:
        @staticmethod
        def profile(sandbox, options, announce):
            announce("a step")
            raise HostError("bad", "better")

    import profiler  # noqa: PLC0415

    monkeypatch.setattr(cli, "_sandbox", lambda command, options: Sandbox())
    monkeypatch.setitem(sys.modules, "profiler.pipeline", Pipeline)
    monkeypatch.setattr(profiler, "pipeline", Pipeline, raising=False)
    assert answer(["run", "--", "true"]) == errors.EXIT_HOST
    assert closed == [True]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--network", "host", "--", "docker", "run", "image"], "--network is for the embedded sandbox"),
        (["--until-healthy", "--", "true"], "--until-healthy needs a container"),
        (["--check-inside", "true", "--", "true"], "--check-inside needs a container"),
        (["--seccomp", "observed", "--", "true"], "--seccomp observed needs a container"),
        (["--", "docker", "ps"], "docker"),
    ],
)
def test_options_belong_to_their_sandbox(capfd, words, says):
    assert answer(["run", *words]) == errors.EXIT_USAGE
    assert says in capfd.readouterr().err


# durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("1.5s", 1.5), ("500ms", 0.5), ("5m", 300), ("1h", 3600), (" 2s ", 2)],
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1d", "1s2", "1e3", "nan", "inf", "٣s x"])
def test_no_durations(text):
    with pytest.raises(UsageError):
        duration(text)


# explain


@pytest.fixture
def written(tmp_path) -> Path:
    target = tmp_path / "m.json"
    manifest.write(target, manifest.render(report(EVERYTHING)))
    return target


def test_explain_prints_on_standard_output(written, capfd):
    assert answer(["explain", str(written), "cap_sys_admin"]) == errors.EXIT_VERIFIED
    out, err = capfd.readouterr()
    assert out.startswith("SYS_ADMIN: required")
    assert err == ""


@pytest.mark.parametrize("target", ["docker", "compose", "kubernetes", "systemd", "setpriv"])
def test_explain_speaks_other_programs_languages(written, capfd, target):
    assert answer(["explain", str(written), "--format", target]) == errors.EXIT_VERIFIED
    assert "SYS_ADMIN" in capfd.readouterr().out.upper()


@pytest.mark.parametrize("words", [["SYS_TIME"], ["SYS_ADMIN", "--format", "docker"], ["--format", "vhs"], ["a", "b"]])
def test_explain_refuses(written, capfd, words):
    assert answer(["explain", str(written), *words]) == errors.EXIT_USAGE
    assert "hint: " in capfd.readouterr().err


def test_explain_of_another_version(tmp_path, capfd):
    target = tmp_path / "m.json"
    target.write_text('{"schema": "capprofile/manifest/v2"}')
    assert answer(["explain", str(target)]) == errors.EXIT_USAGE
    assert "this is capprofile/manifest/v2; this program reads v1" in capfd.readouterr().err


def test_a_reader_that_has_enough_is_no_error(written):
    """The pipe's other end is closed before a word is written."""
    read, write = os.pipe()
    os.close(read)
    program = subprocess.run(
        (sys.executable, "-m", "profiler.cli", "explain", str(written)),
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert program.stderr == b""
    assert program.returncode == 128 + signal.SIGPIPE


def test_a_terminal_without_utf8_costs_nothing(written):
    done = subprocess.run(
        (sys.executable, "-m", "profiler.cli", "explain", str(written), "SYS_ADMIN"),
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    assert b"\\u2190" in done.stdout  # the arrow between a check's functions
    assert done.stderr == b""


# doctor


def probes(*missing):
    names = sorted({name for group in doctor.NEEDED for name in group} - {"root", "machine", "docker engine"})
    return tuple(Probe(name, name not in missing, "as found", f"mend {name}") for name in names)


def facts() -> HostFacts:
    return HostFacts("6.1", "docker", "20.10", (), (), frozenset({"CHOWN"}), ("SYS_TIME",), 2)


def no_engine() -> HostFacts:
    raise HostError("no engine answers", "start it")


@pytest.fixture
def healthy(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def test_doctor_names_each_probe_with_its_mend(healthy):
    text = doctor.render(doctor.examine(lambda: probes("fanotify", "kprobe events"), facts))
    assert "missing  kprobe events" in text
    assert "mend: mend kprobe events" in text
    assert "docker 20.10, cgroup v2" in text
    assert "1 capabilities; not SYS_TIME" in text
    assert text.endswith("profiling is possible here\n")


@pytest.mark.parametrize(
    ("missing", "engine", "possible"),
    [
        ((), facts, True),
        ((), no_engine, True),
        (("overlayfs",), facts, True),
        (("overlayfs",), no_engine, False),
        (("cap_capable event",), facts, True),
        (("cap_capable event", "kprobe events"), facts, False),
        (("user notification",), facts, False),
        (("ptrace",), facts, False),
    ],
)
def test_doctor_says_whether_profiling_is_possible(healthy, missing, engine, possible):
    assert doctor.examine(lambda: probes(*missing), engine).possible is possible


def test_doctor_without_root(monkeypatch, healthy):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert not doctor.examine(probes, facts).possible


def test_doctor_survives_probes_that_fail(healthy):
    def fail():
        raise HostError("no", "yes")

    assert not doctor.examine(fail, facts).possible


@pytest.mark.parametrize(("possible", "code"), [(True, errors.EXIT_VERIFIED), (False, errors.EXIT_HOST)])
def test_doctor_answers_with_its_code(monkeypatch, healthy, capfd, possible, code):
    found = doctor.examine(lambda: probes() if possible else probes("ptrace"), facts)
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert answer(["doctor"]) == code
    assert capfd.readouterr() == (doctor.render(found), "")


@pytest.mark.parametrize(
    ("removed", "says"), [(("a", "b"), "removed a\nremoved b\n"), ((), "nothing was left to remove\n")]
)
def test_doctor_cleans(monkeypatch, capfd, removed, says):
    monkeypatch.setattr(cleaning, "everything", lambda: removed)
    assert answer(["doctor", "--clean"]) == errors.EXIT_VERIFIED
    assert capfd.readouterr().out == says


# the program


def test_help_and_version(capfd):
    assert answer(["--help"]) == errors.EXIT_VERIFIED
    assert answer(["--version"]) == errors.EXIT_VERIFIED
    out = capfd.readouterr().out
    assert "Commands:" in out
    assert "capprofile, version " in out


def test_no_command_at_all(capfd):
    assert answer([]) == errors.EXIT_USAGE
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Usage: capprofile ")


def test_what_the_host_has_no_room_for_is_no_bug(profiled, capfd):
    profiled.result = OSError(errno.ENOSPC, "No space left on device", "/run/x")
    assert answer(["run", "--", "true"]) == errors.EXIT_HOST
    assert capfd.readouterr().err.startswith("capprofile: this host refuses: No space left on device (/run/x)\n")


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch, capfd):
    place = tmp_path / "gone"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    assert answer(["run", "--", "true"]) == errors.EXIT_USAGE
    assert "the working directory does not exist" in capfd.readouterr().err


def test_closed_standard_streams_cost_nothing(written):
    program = " ".join((sys.executable, "-m", "profiler.cli", "explain", str(written)))
    done = subprocess.run(("sh", "-c", f"{program} >&- 2>&- <&-"), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (errors.EXIT_VERIFIED, b"", b"")


def test_explain_needs_neither_engine_nor_tracer(written):
    """The SDK and ptrace take a while to import, and a reader of manifests may not have them working."""
    words = f"import sys; from profiler.cli import answer; answer(['explain', {str(written)!r}]); "
    words += "print(sorted({'docker', 'ptrace', 'requests'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run((sys.executable, "-c", words), capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
