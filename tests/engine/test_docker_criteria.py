"""What passing means, with real containers: services, health checks, checks inside, files in layers and volumes."""

from __future__ import annotations

from contextlib import closing

import by_hand
import pytest

from profiler import pipeline
from profiler.errors import UnverifiedError, UsageError, WorkloadError
from profiler.harness.docker.sandbox import DockerSandbox
from profiler.options import Options, Prove, Seccomp

pytestmark = pytest.mark.engine

MOUNTS = "mount -t tmpfs none /mnt"
HEALTH = ("--health-cmd", "test -e /ready", "--health-interval", "300ms", "--health-retries", "5")


@pytest.fixture
def profiled(busybox_image):
    """Profiles a script in a container: its report, and what was announced."""

    def profile(script, *flags, image=busybox_image, **options):
        said = []
        words = ("docker", "run", "--rm", "--stop-timeout", "1", *flags, image, "sh", "-c", script)
        with closing(DockerSandbox(words)) as sandbox:
            report = pipeline.profile(sandbox, Options(prove=Prove.ALL, jobs=2, **options), said.append)
        return report, said

    return profile


def members(report):
    assert report.verdict.verified
    return {privilege.label for privilege in report.verdict.recipe}


def beside_apparmor(*labels):
    """`labels`, and what a mount or a write below /proc/sys needs beside where the engine confines by AppArmor."""
    return {*labels, "apparmor=unconfined"} if by_hand.has_apparmor() else {*labels}


def denial(report, member):
    return next(why for privilege, why in report.verdict.denials.items() if privilege.label == member)


def test_a_service_runs_as_long_in_its_reruns(profiled):
    report, said = profiled(f"{MOUNTS} && exec sleep 1000", run_for=1.5)
    assert members(report) == beside_apparmor("SYS_ADMIN")
    assert report.verdict.minimal
    assert "a rerun passes if it still runs after 1.5 s" in said
    assert "instead of running on" in denial(report, "SYS_ADMIN")


def test_a_service_is_stopped_once_it_is_healthy(profiled):
    report, said = profiled(f"{MOUNTS} && touch /ready; exec sleep 1000", *HEALTH, until_healthy=True, timeout=60.0)
    assert members(report) == beside_apparmor("SYS_ADMIN")
    assert denial(report, "SYS_ADMIN") == "its health check fails"
    assert report.trace.stopped.healthy
    assert any("its health check passes within 60 s" in line for line in said)


def test_a_service_that_ends_before_it_is_healthy_is_told_by_its_end(profiled):
    report, _ = profiled(f"{MOUNTS} && touch /ready && exec sleep 1000", *HEALTH, until_healthy=True)
    assert "instead of running on" in denial(report, "SYS_ADMIN")


def test_a_service_with_a_health_check_must_be_healthy_at_its_end(profiled):
    """It runs on without the mount, only not healthy."""
    report, _ = profiled(f"{MOUNTS} && touch /ready; exec sleep 1000", *HEALTH, run_for=3.0)
    assert members(report) == beside_apparmor("SYS_ADMIN")
    assert report.verdict.passes == ("it still runs after 3 s", "its health check passes")
    assert "its health check does not pass" in denial(report, "SYS_ADMIN")


def test_health_needs_a_health_check(profiled):
    with pytest.raises(UsageError, match="no health check"):
        profiled("sleep 1000", until_healthy=True)
    with pytest.raises(UsageError, match="no health check"):
        profiled("sleep 1000", *HEALTH[:2], "--no-healthcheck", until_healthy=True)


def test_a_service_that_is_never_healthy_fails_with_every_privilege(profiled):
    with pytest.raises(WorkloadError, match="even with every privilege its health check fails") as caught:
        profiled("exec sleep 1000", *HEALTH, until_healthy=True)
    assert "--health-start-period" in caught.value.hint
    with pytest.raises(WorkloadError, match="ended with exit code 0 before it was healthy"):
        profiled("true", *HEALTH, until_healthy=True)


def test_a_check_inside_is_made_while_the_service_runs(profiled):
    script = f"{MOUNTS}; exec sleep 1000"
    report, said = profiled(script, run_for=1.0, check_inside="grep -q ' /mnt ' /proc/mounts")
    assert members(report) == beside_apparmor("SYS_ADMIN")
    assert denial(report, "SYS_ADMIN") == "the check inside exited with 1"
    assert any("exits with 0 in the container" in line for line in said)
    with pytest.raises(WorkloadError, match="the check inside exited with 3: no"):
        profiled("exec sleep 1000", run_for=0.5, check_inside="echo no; exit 3")


@pytest.mark.parametrize("path", ["/made", "made"])
def test_a_file_in_the_containers_layer_must_be_produced(profiled, path):
    report, _ = profiled(f"{MOUNTS} && echo content > /made; true", expect=(path,))
    assert members(report) == beside_apparmor("SYS_ADMIN")
    assert denial(report, "SYS_ADMIN") == f"{path} is not produced"


def test_a_file_of_the_image_counts_only_when_it_is_written_anew(profiled):
    report, _ = profiled(f"{MOUNTS} && echo > /etc/group; true", expect=("/etc/group",))
    assert members(report) == beside_apparmor("SYS_ADMIN")
    with pytest.raises(WorkloadError, match="/etc/group is not produced"):
        profiled("true", expect=("/etc/group",))


def test_a_file_that_an_earlier_run_left_in_a_volume_does_not_count(profiled, tmp_path):
    volume = f"{tmp_path}:/out"
    report, _ = profiled(f"{MOUNTS} && echo content > /out/made; true", "-v", volume, expect=("/out/made",))
    assert members(report) == beside_apparmor("SYS_ADMIN")
    assert denial(report, "SYS_ADMIN") == "/out/made is not produced"
    assert (tmp_path / "made").read_text() == "content\n"


def test_a_link_to_a_file_is_followed(profiled):
    report, _ = profiled(f"{MOUNTS} && echo content > /tmp/made; ln -s tmp/made /link", expect=("/link",))
    assert members(report) == beside_apparmor("SYS_ADMIN")


def test_strict_needs_what_had_succeeded(profiled):
    report, _ = profiled("touch /made; chown 1 /made; true", strict=True)
    assert members(report) == {"CHOWN"}
    assert denial(report, "CHOWN").endswith("is refused, and had succeeded")


@pytest.mark.parametrize(
    ("seccomp", "expected"),
    [
        (Seccomp.PROFILE, {"seccomp:unshare"}),
        (Seccomp.UNCONFINED, {"seccomp=unconfined"}),
        (Seccomp.DEFAULT, {"SYS_ADMIN"}),  # with it the engine's own filter opens the call
    ],
)
def test_what_the_engines_filter_denies_is_opened_as_asked(profiled, tmp_path, seccomp, expected, busybox_image):
    report, _ = profiled("unshare -U true", "--user", "1000", seccomp=seccomp, output=tmp_path / "manifest.json")
    unconfined = {"apparmor=unconfined"} if by_hand.denies_user_namespaces(busybox_image) else set()
    assert members(report) == expected | unconfined


def test_the_engines_filter_stays_if_asked_even_if_nothing_passes(profiled, tools_image):
    """No capability opens keyctl(2) in the engine's default filter."""
    with pytest.raises(UnverifiedError, match="seccomp filter denies calls"):
        profiled(
            "exec perl -e 'exit(syscall(250, 0, -3, 1) < 0)'",
            "--user",
            "1000",
            image=tools_image,
            seccomp=Seccomp.DEFAULT,
        )


def test_a_denied_call_that_nobody_watches_is_opened_alone(profiled, tools_image, tmp_path):
    """clone3(2) is too common to be stopped, and the filter's ENOSYS too common to count; this one insists."""
    insists = "exec perl -e 'use Errno; syscall(435, 0, 0); exit($!{ENOSYS} ? 1 : 0)'"
    report, _ = profiled(insists, image=tools_image, output=tmp_path / "manifest.json")
    assert members(report) == {"seccomp:clone3"}


def test_a_parameter_that_is_looked_at_first_is_left_to_the_engine(profiled):
    mark = "/proc/sys/net/ipv4/conf/all/src_valid_mark"
    report, _ = profiled(f"[ $(cat {mark}) = 1 ] || echo 1 > {mark} || exit 3")
    assert members(report) == {"sysctl:net.ipv4.conf.all.src_valid_mark=1"}
    assert "--sysctl net.ipv4.conf.all.src_valid_mark=1" in " ".join(report.docker_command)


def test_a_workload_that_insists_on_writing_a_parameter_gets_it_writable(profiled):
    report, _ = profiled("echo 1 > /proc/sys/net/ipv4/conf/all/src_valid_mark || exit 3")
    assert members(report) == beside_apparmor("systempaths=unconfined")
    assert "--sysctl net.ipv4.conf.all.src_valid_mark=1" in [advice.flag for advice in report.safer]


def test_what_no_stopped_call_shows_is_found_without_halving(profiled):
    """A masked file is there, and empty; opening to read is not stopped."""
    report, _ = profiled("grep -q . /proc/keys || exit 3")
    assert members(report) == {"systempaths=unconfined"}
    assert "halve" not in {run.purpose for run in report.verdict.runs}
