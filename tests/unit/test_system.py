"""Writes below /sys: what they need, how it is written as flags and read back, and what reruns leave behind."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import pytest
from sample_report import report

from profiler.catalogue.dangers import reason, weight
from profiler.harness.docker.flags import flags_of
from profiler.harness.docker.system import leaving_none
from profiler.kernel import fanotify
from profiler.model import BindMount, Capability, Doubt, Observation, Process, SecurityOption, SystemWrite, Trace
from profiler.report import lines
from profiler.report.labels import privilege_of, same_privilege
from profiler.report.manifest import load, render, write
from profiler.synthesizer.system import WRITABLE_GROUPS, beyond_reach, groups_made, mounts, system_requirements

ENABLED = "/sys/kernel/mm/transparent_hugepage/enabled"
GROUP = "/sys/fs/cgroup/mine"
SHELL = Process(7, "/bin/sh")


def wrote(path: str, call: str = "openat", result: int = 3) -> Observation:
    return Observation(call, (), result, path, SHELL)


def trace(*observations: Observation, **system: SystemWrite) -> Trace:
    writes = {"enabled": ENABLED, "group": GROUP}
    return Trace(observations, (), (), {}, 0, 0.1, system={writes[name]: write for name, write in system.items()})


def needs(found: Trace, *broad: SecurityOption) -> list[tuple[object, Doubt]]:
    rows = system_requirements(found, frozenset(broad))
    return [(privilege, row.doubt) for row in rows for a in row.alternatives for privilege in a]


def test_a_file_needs_the_hosts_own() -> None:
    found = trace(wrote(ENABLED), wrote(ENABLED, "read"), wrote("/etc/passwd"), enabled=SystemWrite(ENABLED, "/sys"))
    assert needs(found, WRITABLE_GROUPS) == [(BindMount(ENABLED), Doubt.LIKELY)]
    (row,) = system_requirements(found, frozenset())
    assert row.evidence == (wrote(ENABLED),)
    assert mounts([row]) == {BindMount(ENABLED)}


def test_what_fails_anyway_or_may_be_its_own_mount_is_doubtful() -> None:
    assert needs(trace(wrote(ENABLED, result=-13), enabled=SystemWrite(ENABLED, "/sys"))) == [
        (BindMount(ENABLED), Doubt.DOUBTFUL)
    ]
    assert needs(trace(wrote(ENABLED), enabled=SystemWrite(ENABLED, "/sys", doubtful=True))) == [
        (BindMount(ENABLED), Doubt.DOUBTFUL)
    ]


def test_a_control_group_needs_the_containers_own_writable_where_the_engine_can() -> None:
    made = trace(
        wrote(GROUP, "mkdir", 0), group=SystemWrite("/sys/fs/cgroup", "/sys/fs/cgroup", own_groups=True, made=True)
    )
    assert needs(made, WRITABLE_GROUPS) == [(WRITABLE_GROUPS, Doubt.LIKELY)]
    assert needs(made) == [(BindMount("/sys/fs/cgroup", host_groups=True), Doubt.LIKELY)]
    assert groups_made(made) == (GROUP,)


@pytest.mark.parametrize("target", ["/mnt", "/sys/fs/cgroup"])
def test_what_it_mounts_itself_needs_nothing_of_the_engines(target: str) -> None:
    mounting = Observation("mount", ('"x"', f'"{target}"', '"cgroup2"', "0", "NULL"), 0, target, SHELL)
    group = SystemWrite("/sys/fs/cgroup", "/sys/fs/cgroup", made=True)
    assert needs(trace(mounting, wrote(GROUP, "mkdir", 0), group=group)) == []
    refused = dataclasses.replace(mounting, result=-1)
    assert len(needs(trace(refused, wrote(GROUP, "mkdir", 0), group=group))) == 1


def test_what_it_makes_writable_itself_needs_nothing_more() -> None:
    remounting = Observation("mount", ('"x"', '"/sys"', "NULL", "MS_REMOUNT|MS_BIND", "NULL"), 0, "/sys", SHELL)
    assert needs(trace(remounting, wrote(ENABLED), enabled=SystemWrite(ENABLED, "/sys"))) == []
    assert beyond_reach(trace(remounting, wrote(ENABLED), enabled=SystemWrite("", "/sys"))) is None


def test_what_nothing_of_the_hosts_stands_for_is_named() -> None:
    lost = trace(
        wrote(ENABLED, result=-30), wrote(GROUP), enabled=SystemWrite("", "/sys"), group=SystemWrite("", "/sys")
    )
    assert needs(lost) == []
    assert beyond_reach(lost) == wrote(GROUP)
    assert beyond_reach(trace(wrote(ENABLED), enabled=SystemWrite(ENABLED, "/sys"))) is None


def test_flags_and_labels() -> None:
    recipe = frozenset({BindMount("/sys/fs/cgroup", host_groups=True), BindMount(ENABLED), Capability("CHOWN")})
    assert flags_of(recipe)[4:] == (
        *("--volume", "/sys/fs/cgroup:/sys/fs/cgroup", "--volume", f"{ENABLED}:{ENABLED}"),
        *("--cgroupns", "host"),
    )
    assert privilege_of(BindMount(ENABLED).label) == BindMount(ENABLED)
    assert same_privilege(BindMount(ENABLED).label, ENABLED)


def test_the_hosts_groups_are_heavier_than_the_containers_own_and_than_one_setting() -> None:
    assert weight(BindMount("/sys/fs/cgroup")) > weight(WRITABLE_GROUPS) > weight(BindMount(ENABLED)) > 0
    assert "host" in reason(BindMount(ENABLED))


def test_a_manifest_keeps_them(tmp_path: Path) -> None:
    recipe = (BindMount("/sys/fs/cgroup", host_groups=True), BindMount(ENABLED))
    file = tmp_path / "m.json"
    write(file, render(report(recipe)))
    document = json.loads(file.read_text())
    assert document["recipe"]["volumes"] == ["/sys/fs/cgroup:/sys/fs/cgroup", f"{ENABLED}:{ENABLED}"]
    assert document["recipe"]["cgroupns"] == "host"
    manifest = load(file)
    assert manifest.recipe() == frozenset(recipe)
    composed = lines.compose(manifest)
    assert f'      - "{ENABLED}:{ENABLED}"' in composed
    assert "    cgroup: host" in composed
    pod = lines.kubernetes(manifest)
    assert pod.count(f'"{ENABLED}"') == 2
    assert pod.index("volumeMounts:") < pod.index("  volumes:") < pod.index("hostPath:")


def test_reruns_leave_no_group_that_was_not_there(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    groups = [str(tmp_path / name) for name in ("old", "new", "never")]
    with leaving_none(groups):
        (tmp_path / "new/below").mkdir(parents=True)
        (tmp_path / "old/below").mkdir()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["old", "old/below"]


@pytest.mark.parametrize("name", ["x", "a name"])
def test_an_event_tells_the_directory_and_the_new_name(name: str) -> None:
    handle, entry = b"12345678", name.encode() + b"\0\0"
    info = struct.pack("=BxH8sIi", fanotify.FAN_EVENT_INFO_TYPE_DFID_NAME, 20 + 8 + len(entry), b"", 8, 254)
    body = info + handle + entry
    data = struct.pack("=IBBHQii", 24 + len(body), 3, 0, 24, fanotify.FAN_CREATE | fanotify.FAN_ONDIR, -1, 7) + body
    (event,) = fanotify.parse(data)
    assert (event.pid, event.name, event.file) == (7, name, fanotify.FileHandle(254, handle))
