"""Device nodes that a real process opens, makes and mounts, seen without ever being opened by us."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler.catalogue.devices import is_common, pool_of
from profiler.kernel.fanotify import (
    FAN_CLOSE_NOWRITE,
    FAN_CLOSE_WRITE,
    FAN_EVENT_ON_CHILD,
    FAN_OPEN,
    Group,
    handle_of,
    parse,
)
from profiler.model import DeviceUse, Process
from profiler.tracer import devices
from profiler.tracer.devices import DeviceWatch

pytestmark = pytest.mark.kernel

ALL = FAN_OPEN | FAN_CLOSE_WRITE | FAN_CLOSE_NOWRITE
KMSG = os.makedev(1, 11)


class Shell:
    """A shell in a mount namespace of its own whose /dev is a new tmpfs with some nodes; runs one line at a time."""

    def __init__(self) -> None:
        unshare = shutil.which("unshare")
        assert unshare is not None
        self.process = subprocess.Popen(
            [unshare, "--mount", "--propagation", "private", "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.pid = self.process.pid
        self.run("mount -t tmpfs none /dev; mkdir /dev/below /dev/pts; mknod /dev/null c 1 3")
        self.run("mknod /dev/kmsg c 1 11; mknod /dev/below/kmsg c 1 11; ln -s kmsg /dev/link")

    def run(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\necho\necho DONE\n")
        out = []
        while (got := self.process.stdout.readline()) not in ("DONE\n", ""):
            out.append(got)
        return "".join(out).strip()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def shell() -> Iterator[Shell]:
    started = Shell()
    yield started
    started.close()


def who(pid: int) -> Process:
    return Process(pid, "known")


def used(watch: DeviceWatch) -> dict[str, str]:
    return {use.path: use.access for use in watch.finish(lambda process: process)}


def test_handles_name_nodes_without_opening_them(node_path: Path) -> None:
    node = node_path / "node"
    os.mknod(node, 0o600 | stat.S_IFCHR, KMSG)
    with Group() as group:
        group.mark(str(node), ALL)
        os.close(os.open(node, os.O_WRONLY))
        (event,) = group.events()
        assert event.file == handle_of(str(node))
        assert event.mask & ALL == FAN_OPEN | FAN_CLOSE_WRITE
        assert event.pid == os.getpid()
        group.unmark(str(node), ALL)
        os.close(os.open(node, os.O_WRONLY))
        assert not list(group.events())
        group.mark(str(node_path), ALL | FAN_EVENT_ON_CHILD)
        os.close(os.open(node, os.O_RDONLY | os.O_NONBLOCK))
        assert [event.mask & ALL for event in group.events()] == [FAN_OPEN | FAN_CLOSE_NOWRITE]
    with pytest.raises(OSError, match="name_to_handle_at"):
        handle_of(str(node_path / "missing"))
    assert list(parse(b"")) == []


def test_uses_are_told_by_path_and_access(shell: Shell) -> None:
    with DeviceWatch(shell.pid, who) as watch:
        shell.run("true </dev/kmsg; true >/dev/below/kmsg; true >/dev/null")
        uses = watch.finish(lambda process: process)
        assert {(use.path, use.access, use.made) for use in uses} == {
            ("/dev/kmsg", "r", False),
            ("/dev/below/kmsg", "rw", False),
        }
        assert uses[0].process == Process(shell.pid, "known")
        assert (uses[0].kind, uses[0].major, uses[0].minor) == ("c", 1, 11)
        assert watch.losses() == {}


def test_a_node_that_a_mount_brings_elsewhere_is_told_apart(shell: Shell) -> None:
    shell.run("mkdir /dev/elsewhere; mount -t tmpfs none /mnt; touch /mnt/node; mount --bind /dev/kmsg /mnt/node")
    shell.run("touch /mnt/null /mnt/twice; mount --bind /dev/null /mnt/null; mount --bind /etc/hostname /mnt/twice")
    with DeviceWatch(shell.pid, who) as watch:
        shell.run("true </mnt/node; true </mnt/null; true </mnt/twice")
        (use,) = watch.finish(lambda process: process)
        assert (use.path, use.kind, use.major, use.minor, use.access) == ("/dev/kmsg", "c", 1, 11, "r")
    shell.run("mount --bind /dev/below/kmsg /mnt/node; umount /dev")
    with DeviceWatch(shell.pid, who) as watch:
        shell.run("true </mnt/node; true </dev/kmsg")
        uses = watch.finish(lambda process: process)
        assert {(use.path, use.bound, use.made) for use in uses} == {
            ("/mnt/node", True, False),
            ("/dev/kmsg", False, False),
        }


def test_the_hosts_whole_dev_mounted_elsewhere_is_watched(shell: Shell) -> None:
    shell.run("umount /dev; mount --bind /dev /mnt; mount -t tmpfs none /dev")
    with DeviceWatch(shell.pid, who) as watch:
        shell.run("true </mnt/kmsg")
        uses = watch.finish(lambda process: process)
        assert {(use.path, use.bound) for use in uses} == {("/mnt/kmsg", True)}


def test_a_link_leads_to_its_node(shell: Shell) -> None:
    with DeviceWatch(shell.pid, who) as watch:
        shell.run("true </dev/link; true <>/dev/link")
        assert used(watch) == {"/dev/kmsg": "rw"}


def test_a_device_that_stays_open_counts_as_read_and_written(shell: Shell) -> None:
    with DeviceWatch(shell.pid, who) as watch:
        shell.run("exec 7</dev/kmsg")
        assert used(watch) == {"/dev/kmsg": "rw"}


def test_a_node_is_watched_from_the_moment_it_is_made(shell: Shell) -> None:
    maker = Process(7, "/bin/mknod")
    with DeviceWatch(shell.pid, who) as watch:
        for path in ("/dev/new", "/dev/other"):
            watch.made(shell.pid, path, stat.S_IFCHR | 0o600, KMSG, maker)
        shell.run("mknod /dev/new c 1 11; true </dev/new")
        watch.drain()
        shell.run("mknod /dev/other c 1 11; true >/dev/other; mv /dev/new /dev/renamed; true >/dev/renamed")
        found = watch.finish(lambda process: process)
    assert {(use.path, use.access, use.made, use.process.exe) for use in found} == {
        ("/dev/new", "m", True, "/bin/mknod"),
        ("/dev/new", "rw", True, "known"),
        ("/dev/other", "m", True, "/bin/mknod"),
        ("/dev/other", "rw", True, "known"),
    }


def test_what_was_not_made_and_what_is_common_is_no_use(shell: Shell) -> None:
    with DeviceWatch(shell.pid, who) as watch:
        watch.made(shell.pid, "/dev/never", stat.S_IFCHR | 0o600, KMSG, who(7))
        watch.made(shell.pid, "/dev/zero", stat.S_IFCHR | 0o600, os.makedev(1, 5), who(7))
        watch.made(shell.pid, "/dev/whiteout", stat.S_IFCHR, 0, who(7))
        watch.made(shell.pid, "/nowhere/x", stat.S_IFCHR, KMSG, who(7))
        watch.made(shell.pid, "/dev/fifo", stat.S_IFIFO, KMSG, who(7))
        shell.run("mknod /dev/zero c 1 5; true </dev/zero; touch /dev/file")
        assert used(watch) == {}


def test_a_devtmpfs_that_the_workload_mounts_is_watched(shell: Shell, wait_until: Callable[..., Any]) -> None:
    with DeviceWatch(shell.pid, who) as watch:
        watch.mounting(shell.pid, "/mnt")
        shell.run("mount -t devtmpfs none /mnt")
        if not shell.run("test -c /mnt/kmsg && echo yes"):
            pytest.skip("needs a devtmpfs with kmsg")
        watch.drain()
        shell.run("true </mnt/kmsg")
        found = watch.finish(lambda process: process if process.pid == shell.pid else None)
    assert {use.path: use.access for use in found} == {"/mnt/kmsg": "r"}


def test_a_mounted_block_device_is_a_use(shell: Shell) -> None:
    shell.run("mknod /dev/loop0 b 7 0")
    with DeviceWatch(shell.pid, who) as watch:
        watch.mounted(shell.pid, "/dev/loop0", read_only=True, process=who(9))
        watch.mounted(shell.pid, "/dev/kmsg", read_only=False, process=who(9))
        watch.mounted(shell.pid, "/dev/missing", read_only=False, process=who(9))
        assert watch.finish(lambda process: process) == (
            DeviceUse("/dev/loop0", "b", 7, 0, "r", Process(9, "known"), count=1),
        )


def test_other_processes_are_left_out_and_gone_ones_completed(shell: Shell) -> None:
    with DeviceWatch(shell.pid, lambda pid: Process(pid, "")) as watch:
        shell.run("true </dev/kmsg")
        watch.drain()
        (use,) = watch.finish(lambda process: Process(process.pid, "/bin/told"))
        assert use.process.exe == "/bin/told"
        assert watch.finish(lambda process: None) == ()


def test_where_nothing_can_be_watched_it_is_a_loss(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> Group:
        raise OSError("no fanotify here")

    monkeypatch.setattr(devices, "Group", refused)
    with DeviceWatch(shell.pid, who) as watch:
        assert watch.fd is None
        watch.made(shell.pid, "/dev/new", stat.S_IFCHR | 0o600, KMSG, who(7))
        shell.run("mknod /dev/new c 1 11; true </dev/new")
        assert used(watch) == {"/dev/new": "m"}
        assert watch.losses() == {"devices_unwatched": 3}


def test_nothing_of_a_watch_remains(shell: Shell) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    watch = DeviceWatch(shell.pid, who)
    watch.made(shell.pid, "/dev/new", stat.S_IFCHR | 0o600, KMSG, who(7))
    watch.close()
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_the_catalogue_knows_common_nodes_and_pools() -> None:
    assert is_common("c", 1, 3)
    assert is_common("c", 136, 77)
    assert not is_common("b", 1, 3)
    assert not is_common("c", 1, 11)
    loop = pool_of("b", 7)
    assert loop is not None
    assert loop.driver == "loop"
    assert pool_of("c", 10) is None
    mapper = pool_of("b", 253, frozenset({("b", 253, "device-mapper")}))
    assert mapper is not None
    assert mapper.pattern == "dm-[0-9]*"
    assert pool_of("b", 253, frozenset({("b", 253, "zram")})) is not mapper
