"""The table: what it says for each verdict, and that it stays plain and harmless."""

from __future__ import annotations

import dataclasses
import re
import subprocess

import pytest
from sample_report import EVERYTHING, FACTS, LOOP, LOOPED, MOUNT, ROWS, SYS_ADMIN, report

from profiler.model import (
    AllowList,
    Capability,
    DeviceUse,
    Observation,
    Observed,
    Outcome,
    Process,
    Rerun,
    Trace,
    Verdict,
)
from profiler.report import table
from profiler.report.table import PLAIN_WIDTH, render


def test_a_verified_recipe_is_shown_with_its_reason_and_its_line():
    text = render(report())
    assert "1 privilege instead of all of --privileged" in text
    row = next(line for line in text.splitlines() if line.startswith("SYS_ADMIN"))
    assert "required" in row
    assert 'mount("none", "/mnt", "tmpfs"' in row
    assert "/bin/mount" in row
    assert "verified in 2 runs (0.8 s, 0.8 s); minimal: proved" in text
    assert text.rstrip().endswith("docker run --cap-drop ALL --cap-add SYS_ADMIN image mount")


def test_a_recipe_of_nothing_says_so():
    text = render(report(()))
    assert "needs no privilege: drop --privileged" in text
    assert "PRIVILEGE" not in text


def test_an_allow_list_is_a_line_and_no_privilege():
    seen = Observed({"read": "/bin/cat"}, ("capset",), {"futex": "a lock"})
    recipe = frozenset({SYS_ADMIN, AllowList(seen.names)})
    text = render(report(recipe, verdict=Verdict(recipe, True, True, (), observed=seen)))
    assert "1 privilege instead of all of --privileged" in text
    assert "its seccomp profile allows 3 system calls, 1 of them seen in the workload" in text
    bound = frozenset({AllowList(("read",))})
    assert "drop --privileged" in render(report(bound))


def test_a_recipe_of_nothing_that_is_not_verified_claims_nothing():
    text = render(report((), verified=False, minimal=False))
    assert "needs no privilege" not in text
    assert "not verified" in text


def test_failed_runs_are_named():
    text = render(report(verified=False, minimal=False))
    assert "not verified: 2 runs" in text
    assert "exit code 1" in text


def test_a_time_limit_is_named():
    run = Rerun(frozenset({SYS_ADMIN}), Outcome(137, 5.0, timed_out=True), False, "verify")
    text = render(report(verdict=Verdict(frozenset({SYS_ADMIN}), False, False, (run,))))
    assert "time limit" in text


def test_without_runs_nothing_is_claimed():
    text = render(report(verdict=Verdict(frozenset({SYS_ADMIN}), False, False, ())))
    assert "even with every privilege" in text


def test_many_runs_are_summed_up():
    assert "verified in 9 runs (6.8 s in all)" in render(report(runs=9))


def test_losses_are_shown_and_nothing_is_called_minimal():
    text = " ".join(render(report(losses={"overrun": 12, "none": 0})).split())
    assert "lost: overrun ×12" in text
    assert "minimal: unproved" in text
    assert "none" not in text.partition("lost:")[2].partition("\n")[0].partition("×")[0]


def test_optional_ones_are_left_out_with_what_was_tried():
    text = render(report(optional={Capability("SYSLOG"): "syslog(10) by /bin/dmesg"}))
    assert "left out: SYSLOG (passes without it): syslog(10) by /bin/dmesg" in text


def test_warnings_notes_and_safer_ways_are_shown():
    text = render(report(notes=("a nested tracer was seen",)))
    assert "warning: the Docker socket is mounted" in text
    assert "note: a nested tracer was seen" in text
    assert "safer: let the engine mount the tmpfs (--tmpfs /mnt): needs no SYS_ADMIN" in text


def test_outside_an_engine_other_programs_lines_are_shown():
    text = render(report(native=True, command=("mount", "-t", "tmpfs", "none", "/mnt")))
    assert "setpriv --bounding-set=-all,+sys_admin" in text
    assert "systemd-run --pipe" in text
    assert "--cap-drop ALL --cap-add SYS_ADMIN" in text


def test_plain_output_is_stable_narrow_and_without_escapes():
    made = report(EVERYTHING)
    text = render(made)
    assert text == render(made)
    assert "\x1b" not in text
    assert all(len(line) <= PLAIN_WIDTH for line in text.splitlines())


def test_a_terminal_gets_colours():
    assert "\x1b[" in render(report(), colour=True)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_nothing_is_cut_off_in_narrow_windows(width):
    text = render(report(EVERYTHING), width=width)
    squeezed = re.sub(r"\s", "", text)
    for label in ("SYS_ADMIN", "/dev/fuse:rw", "b7:*rw", "seccomp:keyctl"):
        assert label[:8] in squeezed


def test_the_printed_line_is_the_command_word_for_word():
    command = ("docker", "run", *("-e", "A=it's  two"), "image", "sh", "-c", "echo 'x' && " + "true && " * 30 + "true")
    text = render(report(docker_command=command))
    printed = text.partition("run this instead:\n")[2]
    read = subprocess.run(("sh", "-c", f"printf '%s\\0' {printed}"), capture_output=True, check=True, text=True).stdout
    assert tuple(read.split("\0")[:-1]) == command


def test_what_the_workload_chose_cannot_drive_the_terminal():
    evil = "\x1b]0;owned\x07\x9b31m[bold]"
    seen = Observation("mount", (evil,), 0, evil, Process(1, evil, (evil,), 0, (evil,)))
    rows = report().requirements
    requirement = type(rows[0].requirement)(rows[0].requirement.alternatives, evil, rows[0].requirement.doubt, (seen,))
    row = type(rows[0])(rows[0].privilege, requirement, rows[0].status)
    trace = Trace((seen,), (), (), {}, 0, 1.0)
    made = report(
        requirements=(row,), trace=trace, notes=(evil,), warnings=(evil,), docker_command=("docker", "run", evil)
    )
    text = render(made)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\x9b" not in text
    assert "[bold]" in re.sub(r"\s", "", text)


def test_the_best_evidence_is_chosen():
    rows = report().requirements
    bare = Observation("openat", (), None, None, Process(1, "/bin/other"))
    requirement = type(rows[0].requirement)(
        rows[0].requirement.alternatives, "r", rows[0].requirement.doubt, (bare, *rows[0].requirement.evidence)
    )
    text = render(report(requirements=(type(rows[0])(rows[0].privilege, requirement, rows[0].status),)))
    assert "/bin/mount" in text
    assert "/bin/other" not in text


def test_evidence_of_the_same_kind_is_counted():
    rows = report().requirements
    again = type(rows[0])(rows[0].privilege, rows[0].requirement, rows[0].status)
    text = render(report(requirements=(rows[0], again)))
    assert len([line for line in text.splitlines() if line.startswith("SYS_ADMIN")]) == 1
    assert "(and 1 more)" in " ".join(text.split())


def test_no_line_ends_in_spaces():
    assert not any(line.endswith(" ") for line in render(report(EVERYTHING)).splitlines())


def test_what_nobody_could_grant_is_named():
    facts = type(FACTS)("6.1", "docker", "20", (), (), frozenset(), ("SYS_RESOURCE", "BPF"))
    assert "not granted in any run, nobody here can: SYS_RESOURCE, BPF" in render(report(facts=facts))


def test_the_width_never_breaks_the_command():
    assert table.render(report(EVERYTHING), width=60).count("\\\n") >= 1


def test_of_a_pool_the_node_that_was_written_to_is_shown():
    row = ROWS[LOOP]
    evidence = (DeviceUse("/dev/loop7", "b", 7, 7, "r", MOUNT), LOOPED)
    changed = dataclasses.replace(row, requirement=dataclasses.replace(row.requirement, evidence=evidence))
    text = render(report((LOOP,), requirements=(changed,)))
    assert "used /dev/loop0 (rw)" in text
    assert "loop7" not in text


def test_a_recipe_that_is_not_verified_is_one_line_that_says_so():
    text = render(report(native=True, verified=False, minimal=False))
    assert "\nnot verified:\nsetpriv --bounding-set=-all,+sys_admin" in text
    assert "systemd-run" not in text
    assert "flags for docker run" not in text
