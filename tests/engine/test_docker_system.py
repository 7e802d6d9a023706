"""Writes below /sys, which only `--privileged` mounts writable: the host's file, or the container's control groups."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from profiler import pipeline
from profiler.errors import UnverifiedError
from profiler.harness.docker.sandbox import DockerSandbox
from profiler.model import BindMount, Capability, SecurityOption
from profiler.options import Options, Prove
from profiler.report.interface import Report

pytestmark = pytest.mark.engine
WRITABLE_GROUPS = SecurityOption("writable-cgroups=true")
OVERRIDE = Capability("DAC_OVERRIDE")  # the host's own groups may be such that their mode lets nobody write
APPARMOR = SecurityOption("apparmor=unconfined")


def profiled(*words: str) -> tuple[Report, bool]:
    """The report, and whether the engine can make a container's own control groups writable."""
    with closing(DockerSandbox(("docker", "run", "--rm", *words))) as sandbox:
        report = pipeline.profile(sandbox, Options(prove=Prove.ALL), lambda line: None)
        return report, WRITABLE_GROUPS in sandbox.broad()


def hierarchy() -> str:
    """Where a container may make a group: the whole tree, or one controller's in version 1."""
    return "/sys/fs/cgroup" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "/sys/fs/cgroup/pids"


def test_a_setting_needs_just_that_file(busybox_image: str) -> None:
    setting = next(Path("/sys/block").glob("*/queue/read_ahead_kb"), None)
    if setting is None:
        pytest.skip("this host has no block device")
    before = setting.read_text()
    report, _ = profiled(busybox_image, "sh", "-c", f"read value < {setting} && echo $value > {setting}")
    recipe = report.verdict.recipe - {APPARMOR}  # where the host has it, it denies writing below /sys as well
    assert (report.verdict.verified, report.verdict.minimal) == (True, True)
    assert recipe == {BindMount(str(setting.resolve()))}
    assert len(report.verdict.runs) <= 3
    assert setting.read_text() == before


@pytest.mark.parametrize("what", ["mkdir {0}", "mkdir {0} && echo $$ > {0}/cgroup.procs"])
def test_control_groups_need_a_writable_tree_and_reruns_leave_none(what: str, busybox_image: str) -> None:
    tree = hierarchy()
    group = f"{tree}/capprofile-test-group"
    report, own = profiled(busybox_image, "sh", "-c", what.format(group))
    needed = {WRITABLE_GROUPS} if own else {p for p in report.verdict.recipe if isinstance(p, BindMount)}
    assert (report.verdict.verified, report.verdict.minimal) == (True, True)
    assert needed
    assert report.verdict.recipe - needed <= {OVERRIDE, APPARMOR}
    assert own or {p.path for p in needed if isinstance(p, BindMount)} == {tree}
    assert not Path(group).exists()


def test_groups_that_it_mounts_itself_need_no_tree(busybox_image: str) -> None:
    kind = "cgroup2 x" if hierarchy() == "/sys/fs/cgroup" else "cgroup -o pids x"
    script = f"mount -t {kind} /mnt && mkdir /mnt/mine && rmdir /mnt/mine"
    report, _ = profiled(busybox_image, "sh", "-c", script)
    assert (report.verdict.verified, report.verdict.minimal) == (True, True)
    assert report.verdict.recipe - {APPARMOR, OVERRIDE} == {Capability("SYS_ADMIN")}
    assert len(report.verdict.runs) <= 3


def test_the_containers_own_network_has_nothing_of_the_hosts(tools_image: str) -> None:
    script = "ip link add br0 type bridge && echo 1 > /sys/class/net/br0/bridge/stp_state"
    with pytest.raises(UnverifiedError, match="only --privileged itself makes /sys/class/net/br0/bridge/stp_state"):
        profiled(tools_image, "sh", "-c", script)


def test_a_users_own_mount_is_writable_already(busybox_image: str) -> None:
    setting = next(Path("/sys/block").glob("*/queue/read_ahead_kb"), None)
    if setting is None:
        pytest.skip("this host has no block device")
    words = ("-v", "/sys:/sys", busybox_image, "sh", "-c", f"read value < {setting} && echo $value > {setting}")
    report, _ = profiled(*words)
    assert report.verdict.verified
    assert report.verdict.recipe <= {APPARMOR}
