"""What a workload keeps that it wanted to give up, where the capability for giving it up was left out."""

import pytest
from sample_report import report

from profiler.model import Capability, Doubt, KernelCheck, Observation, Process, Requirement
from profiler.report.manifest import render as manifest
from profiler.report.table import render
from profiler.synthesizer.unconfined import less_confined

ROOT, USER = Process(1, "/usr/sbin/apache2", uid=0), Process(2, "/usr/bin/su", uid=1000)
SETGID = Capability("SETGID")


def call(name, *args, capability="SETGID", result=0, process=ROOT, **check):
    granted = KernelCheck(capability, check.pop("granted", True), "a_function", **check)
    return Observation(name, args, result, None, process, (granted,))


def left_out(*names, doubt=Doubt.LIKELY):
    return [Requirement((frozenset({Capability(name)}),), "", doubt) for name in names]


@pytest.mark.parametrize(
    ("seen", "keeps"),
    [
        (call("setgid", "33"), "setgid(33) by /usr/sbin/apache2 is refused, and if it goes on it stays in the groups"),
        (
            call("setgroups", "0", "NULL"),
            "setgroups(0, NULL) by /usr/sbin/apache2 is refused, and if it goes on it stays in",
        ),
        (call("setresuid", "-1", "33", "-1", capability="SETUID"), "if it goes on it stays root"),
        (call("chroot", '"/srv"', capability="SYS_CHROOT"), "goes on with all of the file system in sight"),
        (call("prctl", "PR_CAPBSET_DROP", "CAP_KILL", capability="SETPCAP"), "keeps its bounding set"),
        (call("unshare", "CLONE_NEWNS", capability="SYS_ADMIN", process=USER), "stays in the namespaces"),
        (call("clone", "CLONE_NEWNS", capability="SYS_ADMIN", result=17), "stays in the namespaces"),
    ],
)
def test_what_would_have_been_given_up_is_told(seen, keeps):
    (check,) = seen.checks
    told = less_confined([seen], left_out(check.capability))
    assert keeps in told.pop(Capability(check.capability))
    assert told == {}
    assert less_confined([seen], left_out("CHOWN")) == {}  # the recipe has it
    assert less_confined([seen], left_out(check.capability, doubt=Doubt.NEGLIGIBLE)) == {}


@pytest.mark.parametrize(
    "seen",
    [
        call("setgid", "0"),
        call("setregid", "0", "-1"),
        call("setgid", "33", process=USER),
        call("setgid", "33", result=-1),
        call("setgid", "33", granted=False),
        call("setgid", "33", foreign_namespace=True),
        call("setgid"),  # it was not stopped
        call("fchownat", "3", '"file"', "33", "33", "0"),
        call("prctl", "PR_SET_SECCOMP", capability="SETPCAP"),
    ],
)
def test_what_gives_up_nothing_is_not(seen):
    assert less_confined([seen], left_out("SETGID", "SETPCAP")) == {}


def test_every_program_is_named_once_and_not_too_many():
    calls = [call("setgid", str(n), process=Process(n, f"/bin/{n % 5}", uid=0)) for n in range(1, 11)]
    (words,) = less_confined(calls, left_out("SETGID")).values()
    assert words.startswith("setgid(1) by /bin/1, /bin/2, /bin/3 … is refused")


def test_it_is_a_warning_in_place_of_the_line_for_what_was_left_out():
    found = report(optional={SETGID: "setgid(33) by a"}, less_confined={SETGID: "setgid(33) by a is refused"})
    text = render(found, width=250)
    line = (
        "left out, and the workload is less confined for it: SETGID (passes without it, and --keep-optional keeps it): "
    )
    assert [row for row in text.splitlines() if "left out" in row] == [f"warning: {line}setgid(33) by a is refused"]
    assert manifest(found)["warnings"][-1] == f"{line}setgid(33) by a is refused"
    assert manifest(found)["verification"]["optional"] == {"SETGID": "setgid(33) by a"}
