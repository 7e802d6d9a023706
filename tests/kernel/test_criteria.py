"""What passing means, with real runs in the embedded sandbox: services, checks, output, files, what is optional."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from profiler import pipeline
from profiler.errors import UnverifiedError, WorkloadError
from profiler.harness.native.sandbox import NativeSandbox
from profiler.model import Capability, Status
from profiler.options import Options, Prove

pytestmark = pytest.mark.kernel

MOUNTS = "mount -t tmpfs none /mnt"
NOT_DECISIVE = f"{MOUNTS}; touch made; chown 1 made; true"  # passes without any capability


@pytest.fixture
def profiled(tmp_path):
    """Profiles a script in a directory of its own: its report, and what was announced."""

    def profile(script, **options):
        said = []
        with closing(NativeSandbox(("sh", "-c", script), cwd=str(tmp_path), env=dict(os.environ))) as sandbox:
            report = pipeline.profile(sandbox, Options(prove=Prove.ALL, **options), said.append)
        return report, said

    return profile


def members(report):
    assert report.verdict.verified
    return {privilege.label for privilege in report.verdict.recipe}


def test_a_service_runs_as_long_in_its_reruns(profiled):
    report, said = profiled(f"{MOUNTS} && exec sleep 1000", run_for=1.0)
    assert members(report) == {"SYS_ADMIN"}
    assert report.verdict.minimal
    assert report.verdict.passes == ("it still runs after 1 s",)
    assert "a rerun passes if it still runs after 1 s" in said
    passed = [run for run in report.verdict.runs if run.passed]
    assert all(run.outcome.stopped and run.outcome.seconds > 0.9 for run in passed)
    (failed,) = (run for run in report.verdict.runs if not run.passed)
    assert failed.outcome.stopped is None


def test_what_ends_by_itself_before_is_an_ordinary_command(profiled):
    report, said = profiled(MOUNTS, run_for=60.0)
    assert members(report) == {"SYS_ADMIN"}
    assert report.verdict.passes == ("it exits with 0",)
    assert any("ended by itself" in line for line in said)


def test_a_command_may_end_well_with_another_exit_code(profiled):
    ended = f"{MOUNTS} && exit 124; exit 3"
    report, _ = profiled(ended, exit_code=124)
    assert members(report) == {"SYS_ADMIN"}
    assert report.verdict.passes == ("it exits with 124",)
    report, _ = profiled(ended)
    assert report.fails_anyway
    report, _ = profiled("true", exit_code=124)
    assert report.fails_anyway


def test_a_host_check_is_made_while_a_service_runs(profiled, tmp_path):
    log = tmp_path / "log"
    report, _ = profiled(
        f"{MOUNTS}; exec sleep 1000", run_for=0.5, check=f"pgrep -x sleep > /dev/null && echo >> {log}"
    )
    assert members(report) == set()
    assert log.read_text().count("\n") == 1 + len(report.verdict.runs)
    with pytest.raises(WorkloadError, match="even with every privilege the check exited with 1"):
        profiled("exec sleep 1000", run_for=0.5, check="false")


def test_a_check_that_fails_with_every_privilege_ends_it(profiled):
    with pytest.raises(WorkloadError, match="even with every privilege the check exited with 4: no"):
        profiled("true", check="echo no; exit 4")


def test_output_is_compared_with_another_run_of_every_privilege(profiled):
    script = f"{MOUNTS} 2> /dev/null; grep -c '^none /mnt' /proc/mounts; true"
    assert members(profiled(script)[0]) == set()
    report, said = profiled(script, compare_output=True)
    assert members(report) == {"SYS_ADMIN"}
    assert report.verdict.denials[next(iter(report.verdict.recipe))] == "its output differs: '0' instead of '1'"
    assert any("failed: its output differs: '0'" in line for line in said)


def test_output_that_never_repeats_verifies_nothing(profiled):
    with pytest.raises(UnverifiedError) as caught:
        profiled("cat /proc/sys/kernel/random/uuid", compare_output=True)
    assert "its output differs" in caught.value.hint


def test_a_file_must_be_produced_anew(profiled, tmp_path):
    """It is there already on the host, with the same content: that does not count."""
    (tmp_path / "made").write_text("content\n")
    script = f"{MOUNTS} && echo content > made; true"
    assert members(profiled(script)[0]) == set()
    report, _ = profiled(script, expect=("made",))
    assert members(report) == {"SYS_ADMIN"}
    assert report.verdict.denials[next(iter(report.verdict.recipe))] == "made is not produced"
    with pytest.raises(WorkloadError, match="made is not produced"):
        profiled("true", expect=("made",))


def test_a_file_must_be_as_the_traced_run_left_it(profiled):
    script = "echo content > made && chown 1 made; true"
    assert members(profiled(script, expect=("made",))[0]) == {"CHOWN"}


def test_what_is_optional_is_left_out_kept_or_needed(profiled):
    report, _ = profiled(NOT_DECISIVE)
    assert members(report) == set()
    assert {"SYS_ADMIN", "CHOWN"} <= {p.label for p in report.verdict.optional}
    report, _ = profiled(NOT_DECISIVE, keep_optional=True)
    assert {"SYS_ADMIN", "CHOWN"} <= members(report)
    assert not report.verdict.minimal
    assert any(run.passed and run.recipe == report.verdict.recipe for run in report.verdict.runs)
    kept = {row.privilege.label: row.status for row in report.requirements}
    assert kept["CHOWN"] is Status.OPTIONAL


def test_strict_needs_what_had_succeeded(profiled):
    report, _ = profiled(NOT_DECISIVE, strict=True)
    assert members(report) == {"SYS_ADMIN", "CHOWN"}
    assert report.verdict.minimal
    denials = {member.label: why for member, why in report.verdict.denials.items()}
    assert denials["CHOWN"].startswith("fchownat(")
    assert denials["CHOWN"].endswith("is refused, and had succeeded")


def test_several_traced_runs_are_merged(profiled):
    report, said = profiled(f"busybox {MOUNTS}", repeat=2)  # by mount(2), as not every mount(8) does
    assert members(report) == {"SYS_ADMIN"}
    assert sum("tracing the workload" in line for line in said) == 2
    (row,) = (row for row in report.requirements if row.privilege.label == "SYS_ADMIN")
    assert sum(getattr(piece, "call", None) == "mount" for piece in row.requirement.evidence) == 2


def test_what_goes_on_for_long_may_be_a_service(profiled, monkeypatch):
    monkeypatch.setattr(pipeline, "HINT_SECONDS", 0.0)
    _, said = profiled("sleep 2.5")
    assert sum("a service? stop it with Ctrl-C, or use --for" in line for line in said) == 1
    _, said = profiled("exec sleep 1000", run_for=2.5)
    assert not any("a service?" in line for line in said)


def test_who_would_keep_more_than_it_wanted_to_is_warned_of(profiled):
    script = "setpriv --reuid 33 --regid 33 --clear-groups true 2> /dev/null; true"
    report, _ = profiled(script)
    assert members(report) == set()
    assert {privilege.label for privilege in report.less_confined} == {"SETGID", "SETUID"}
    assert "if it goes on it stays root" in report.less_confined[Capability("SETUID")]
    assert not report.verdict.kept
    report, _ = profiled(script, keep_optional=True)
    assert {privilege.label for privilege in report.verdict.kept} >= {"SETGID", "SETUID"}
    assert report.less_confined == {}
