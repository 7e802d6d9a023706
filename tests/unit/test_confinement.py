"""What an engine's AppArmor profile denies of what was seen."""

import pytest

from profiler.model import Doubt, KernelCheck, Observation, Process
from profiler.synthesizer.confinement import (
    APPARMOR_UNCONFINED,
    UNLABELLED,
    apparmor_requirements,
    classes_of,
    denies_writing,
    refused_without_check,
)

SHELL = Process(10, "/bin/sh", ("sh",), 0)


def call(name, path=None, result=0):
    return Observation(name, (), result, path, SHELL)


def test_a_mount_needs_the_profile_off_and_says_so():
    (row,) = apparmor_requirements([call("umount2", "/mnt"), call("move_mount", "/mnt", None)])
    assert row.alternatives == (frozenset({APPARMOR_UNCONFINED}),)
    assert row.doubt is Doubt.LIKELY
    assert row.reason == "the engine's AppArmor profile denies move_mount"
    assert [one.call for one in row.evidence] == ["move_mount"]


def test_what_fails_unconfined_is_doubtful_and_never_shown_before_what_succeeds():
    (row,) = apparmor_requirements([call("mount", result=-22)])
    assert row.doubt is Doubt.DOUBTFUL
    (row,) = apparmor_requirements([call("mount", result=-22), call("openat", "/proc/sys/vm/swappiness")])
    assert row.doubt is Doubt.LIKELY
    assert row.evidence[0].call == "openat"


def test_what_makes_a_user_namespace_needs_it_off_where_the_profile_denies_that():
    made = Observation("clone", ("CLONE_NEWNS|CLONE_NEWUSER|17",), 11, None, SHELL)
    other = Observation("unshare", ("CLONE_NEWNS",), 0, None, SHELL)
    assert apparmor_requirements([made, other]) == ()
    assert apparmor_requirements([made, other], {"io_uring"}) == ()
    (row,) = apparmor_requirements([other, made], {"userns"})
    assert row.doubt is Doubt.LIKELY
    assert row.reason == "the engine's AppArmor profile has no rule for userns and so denies user namespaces"
    assert row.evidence == (made,)


def test_the_classes_that_calls_are_about():
    ring = Observation("io_uring_setup", ("8", "{IORING_SETUP_SQPOLL|IORING_SETUP_CLAMP}"), 3, None, SHELL)
    plain = Observation("io_uring_setup", ("8", "{0}"), 3, None, SHELL)
    thread = Observation("clone3", ("{CLONE_NEWUSER}", "88"), 9, None, SHELL)
    assert classes_of([ring, thread]) == {"io_uring", "userns"}
    assert classes_of([plain, call("mount"), call("unshare")]) == frozenset()


def test_ordinary_calls_need_nothing():
    assert (
        apparmor_requirements([call("openat", "/etc/passwd"), call("umount2", "/mnt"), call("chown", "/proc/x")]) == ()
    )


@pytest.mark.parametrize(
    ("path", "denied"),
    [
        ("/proc/sysrq-trigger", True),
        ("/proc/sys/net/ipv4/ip_forward", True),
        ("/proc/sys/kernel/core_pattern", True),
        ("/proc/sys/kernel/shmmax", False),
        ("/proc/sys/kernel/sem", False),
        ("/proc/irq/1/smp_affinity", True),
        ("/proc/acpi/wakeup", True),
        ("/proc/1/oom_score_adj", False),
        ("/proc/self/uid_map", False),
        ("/proc/thread-self/attr/current", False),
        ("/sys/kernel/mm/transparent_hugepage/enabled", True),
        ("/sys/class/net/eth0/mtu", True),
        ("/sys/fs/cgroup/x/cgroup.procs", False),
        ("/sys/fs/bpf/pin", True),
        ("/sys/firmware/x", True),
        ("/dev/null", False),
    ],
)
def test_writes_that_the_profile_denies(path, denied):
    assert denies_writing(path) is denied


def test_a_refusal_without_any_refused_check_is_the_profiles():
    killed = call("kill", result=-13)
    assert refused_without_check([call("kill"), killed]) == {APPARMOR_UNCONFINED, UNLABELLED}
    refused = KernelCheck("DAC_OVERRIDE", granted=False, site="generic_permission")
    for other in (call("kill", result=-1), Observation("openat", (), -13, "/x", SHELL, (refused,))):
        assert refused_without_check([other]) == frozenset()
