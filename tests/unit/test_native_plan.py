"""What the embedded sandbox reads from the host's tables, and what it makes of a recipe. Mounts nothing."""

from __future__ import annotations

import os
from pathlib import Path

from profiler.harness.native import mounts as native_mounts
from profiler.harness.native.cgroups import hierarchies
from profiler.harness.native.devices import broad_devices, host_nodes, provide
from profiler.harness.native.mounts import below, own_layers, visible
from profiler.harness.native.spec import Node, Spec, decode, encode
from profiler.kernel.mountinfo import parse
from profiler.model import Capability, Device, DeviceClass

TABLE = """\
22 27 0:21 / /proc rw,relatime - proc proc rw,hidepid=2
23 27 0:22 / /sys rw,relatime - sysfs sysfs rw
24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,size=1k
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
28 27 0:25 / /run rw,nosuid,nodev,noexec master:3 - tmpfs tmpfs rw,size=10k
29 28 0:4 net:[4026531840] /run/netns/a rw shared:7 - nsfs nsfs rw
30 27 0:40 / /media/my\\040disk,\\011\\134 ro,relatime - vfat /dev/sdb1 ro
31 27 0:41 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw,lowerdir=/a
32 22 0:42 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw,fd=1
33 23 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct,release_agent=/x
34 23 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
35 23 0:38 /user.slice /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
36 23 0:39 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
"""
GROUPS = "4:pids:/elsewhere\n3:cpu,cpuacct:/\n1:name=systemd:/init.scope\n0::/user.slice/a\n"
NODES = (
    Node("/dev/fuse", "c", 10, 229, 0o666),
    Node("/dev/loop0", "b", 7, 0, 0o660),
    Node("/dev/loop1", "b", 7, 1, 0o660),
    Node("/dev/null", "c", 1, 3, 0o666),
    Node("/dev/ptmx", "c", 5, 2, 0o666),
)


def test_mountinfo_is_read():
    mounts = {mount.point: mount for mount in parse(TABLE)}
    assert mounts["/"].fstype == "ext4"
    disk = mounts["/media/my disk,\t\\"]
    assert (disk.number, disk.device, disk.options) == (30, os.makedev(0, 40), {"ro", "relatime"})
    assert mounts["/proc"].super_options == ("rw", "hidepid=2")
    assert mounts["/run/netns/a"].root == "net:[4026531840]"


def test_layers_are_for_what_holds_files():
    assert [mount.point for mount in own_layers(parse(TABLE))] == ["/", "/run", "/media/my disk,\t\\"]


def test_parents_come_before_children_whatever_their_age(monkeypatch):
    """An initramfs mounts /run before the root, and the kernel lists the oldest first."""
    lines = (
        "28 29 0:25 / /run rw - tmpfs tmpfs rw",
        "29 1 8:1 / / rw - ext4 d rw",
        "31 28 0:9 / /run/l rw - tmpfs t rw",
    )
    mounts = parse("\n".join(lines))
    numbers = {mount.point: mount.number for mount in mounts}
    monkeypatch.setattr(native_mounts, "mount_at", lambda point, follow: numbers.get(point))
    assert [mount.point for mount in own_layers(visible(mounts))] == ["/", "/run", "/run/l"]
    monkeypatch.setattr(native_mounts, "mount_at", lambda point, follow: {"/": 29, "/run": 99}.get(point))
    assert [mount.point for mount in visible(mounts)] == ["/"]


def test_below():
    assert below("/run", "/run")
    assert below("/run/x", "/run")
    assert below("/x", "/")
    assert not below("/runner", "/run")


def test_our_group_in_each_hierarchy():
    found = {hierarchy.mount.point: hierarchy for hierarchy in hierarchies(parse(TABLE), GROUPS)}
    assert found["/sys/fs/cgroup/cpu,cpuacct"].controllers == ("cpu", "cpuacct")
    assert found["/sys/fs/cgroup/systemd"].controllers == ("xattr", "name=systemd")
    assert found["/sys/fs/cgroup/systemd"].own == Path("/sys/fs/cgroup/systemd/init.scope")
    assert found["/sys/fs/cgroup/unified"].own == Path("/sys/fs/cgroup/unified/a")
    assert found["/sys/fs/cgroup/unified"].controllers == ()


def test_a_group_outside_what_is_mounted_is_left_out():
    assert hierarchies(parse(TABLE), "0::/system.slice\n") == ()


def test_a_recipe_gives_its_nodes_and_rules():
    provision = provide(frozenset({Capability("MKNOD"), Device("/dev/fuse", "rw")}), NODES)
    assert [node.path for node in provision.nodes] == ["/dev/fuse", "/dev/null"]
    assert provision.rules == ("c 10:229 rw",)
    provision = provide(frozenset({DeviceClass("b", 7)}), NODES)
    assert [node.path for node in provision.nodes] == ["/dev/loop0", "/dev/loop1", "/dev/null"]
    assert provision.rules == ("b 7:* rwm",)
    assert provide(frozenset(), NODES).rules == ()


def test_all_devices_of_the_host_are_no_limit():
    assert broad_devices(NODES) == {Device(f"/dev/{name}") for name in ("fuse", "loop0", "loop1")}
    assert provide(broad_devices(NODES), NODES).rules is None


def test_nodes_are_found_in_any_directory(tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "file").touch()
    (tmp_path / "link").symlink_to("input/file")
    assert host_nodes(tmp_path) == ()
    assert "/dev/null" in [node.path for node in host_nodes()]


def test_links_come_with_their_nodes(tmp_path):
    (tmp_path / "by-id").mkdir()
    (tmp_path / "by-id" / "disk").symlink_to("../loop0")
    (tmp_path / "by-id" / "other").symlink_to("../loop1")
    nodes = (Node(f"{tmp_path}/loop0", "b", 7, 0, 0o660), Node(f"{tmp_path}/loop1", "b", 7, 1, 0o660))
    provision = provide(frozenset({Device(f"{tmp_path}/loop0")}), nodes, tmp_path)
    assert provision.links == ((f"{tmp_path}/by-id/disk", "../loop0"),)


def test_a_specification_survives_its_journey():
    spec = Spec(
        argv=("caf\udce9", "b"),
        env=(("A", "1=2"), ("\udcff", "")),
        cwd="/x",
        capabilities=("CHOWN",),
        nodes=NODES,
        links=(("/dev/a", "b"),),
        device_rules=None,
        private_network=True,
        at_gate=False,
        own_session=True,
        foreground=False,
        name="capprofile-1-2-0-0",
        stores=("/a", "/b"),
        hidden=(),
    )
    fd = spec.to_fd()
    assert not os.get_inheritable(fd)
    assert Spec.from_fd(fd) == spec


def test_messages():
    assert decode(encode("ended", code=3)) == {"kind": "ended", "code": 3}
