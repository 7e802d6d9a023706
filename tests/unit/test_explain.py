"""`explain`: every kind of evidence is readable, and a privilege is found however the user writes it."""

from __future__ import annotations

import pytest
from sample_report import DAC_READ_SEARCH, EVERYTHING, FUSE, LOOP, SYS_ADMIN, report

from profiler.catalogue.capability_texts import ALLOWS
from profiler.catalogue.dangers import CAPABILITIES, reason, weight
from profiler.catalogue.safer import ALTERNATIVES, advice
from profiler.errors import UsageError
from profiler.kernel.capabilities import CAPABILITIES as KERNELS
from profiler.model import (
    AllowList,
    BindMount,
    Capability,
    Device,
    DeviceClass,
    DeviceUse,
    Doubt,
    JudgedRequirement,
    KernelCheck,
    Observation,
    Outcome,
    Process,
    RawCall,
    Requirement,
    Rerun,
    SecurityOption,
    Status,
    Syscalls,
    Sysctl,
    Verdict,
)
from profiler.report.explain import explain
from profiler.report.labels import privilege_of
from profiler.report.manifest import Manifest, render


def read(members=EVERYTHING, **changed) -> Manifest:
    return Manifest(render(report(members, **changed)))


def test_one_privilege_is_explained_with_its_evidence():
    text = explain(read(), "SYS_ADMIN")
    assert text.startswith("SYS_ADMIN: required\n")
    assert ALLOWS["SYS_ADMIN"] in text
    assert reason(SYS_ADMIN) in text
    assert 'mount("none", "/mnt", "tmpfs", 0, NULL) = 0' in text
    assert "/bin/mount (pid 4711, uid 0): mount -t tmpfs none /mnt" in text
    assert "below   /bin/sh" in text
    assert "SYS_ADMIN granted in may_mount" in text
    assert "may_mount ← path_mount" in text
    assert "DAC_READ_SEARCH" not in text


def test_alternatives_and_counts_are_shown():
    text = explain(read(), "DAC_READ_SEARCH")
    assert "would do as well  DAC_OVERRIDE" in text
    assert "×3" in text
    assert "generic_permission" in text


def test_a_check_is_told_with_the_releases_that_have_it():
    def told(site: str) -> str:
        check = KernelCheck("SYS_ADMIN", True, site, ("may_mount",), borrowed=True)
        seen = Observation("mount", (), 0, None, Process(1, "/bin/mount"), (check,))
        row = Requirement((frozenset({SYS_ADMIN}),), "", Doubt.CERTAIN, (seen,))
        text = explain(read((SYS_ADMIN,), requirements=(JudgedRequirement(SYS_ADMIN, row, Status.REQUIRED),)))
        (line,) = [line for line in text.splitlines() if line.strip().startswith("kernel")]
        return line

    others = "with credentials that are not the process's own)"
    assert told("path_mount.isra.0").endswith(f"in path_mount.isra.0 (there since Linux 5.9, {others}")
    assert told("generic_permission").endswith(f"(there since before Linux 2.6.12, {others}")
    assert told("ksys_chroot").endswith(f"(there since Linux 4.17, until Linux 5.9, {others}")
    assert told("nobody_knows").endswith(f"in nobody_knows ({others}")


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("SYS_ADMIN", "SYS_ADMIN"),
        ("CAP_SYS_ADMIN", "SYS_ADMIN"),
        ("cap_sys_admin", "SYS_ADMIN"),
        ("sys_admin", "SYS_ADMIN"),
        ("DAC_OVERRIDE", "DAC_READ_SEARCH"),
        ("/dev/fuse", FUSE.label),
        ("/dev/fuse:rw", FUSE.label),
        ("b 7:*", LOOP.label),
        (LOOP.label, LOOP.label),
        ("keyctl", "seccomp:keyctl"),
        ("seccomp", "seccomp:keyctl"),
        ("systempaths", "systempaths=unconfined"),
        ("net.ipv4.ip_unprivileged_port_start", "sysctl:net.ipv4.ip_unprivileged_port_start=80"),
    ],
)
def test_a_privilege_is_found_however_it_is_written(words, label):
    assert explain(read(), words).startswith(f"{label}: ")


@pytest.mark.parametrize("words", ["", "CAP_", "SYS_TIME", "/dev/null", "sys admin"])
def test_an_unknown_privilege_lists_what_there_is(words):
    with pytest.raises(UsageError) as caught:
        explain(read((SYS_ADMIN, FUSE)), words)
    assert caught.value.hint == "it has: SYS_ADMIN, /dev/fuse:rw"


def test_everything_is_explained_without_a_name():
    text = explain(read())
    assert text.count(": required\n") + text.count(": unproven\n") == len(EVERYTHING)
    assert "verification: verified, minimal: proved" in text
    assert "safer: let the engine mount the tmpfs (--tmpfs /mnt)" in text


def test_a_workload_that_needs_nothing():
    assert explain(read(())).startswith("no requirement was found")


def test_losses_are_told():
    assert "lost: overrun ×2" in explain(read(losses={"overrun": 2}))


def test_what_the_reruns_showed_is_told():
    both = frozenset({SYS_ADMIN, DAC_READ_SEARCH})
    runs = (
        Rerun(both, Outcome(0, 1.0), True, "verify"),
        Rerun(frozenset({DAC_READ_SEARCH}), Outcome(32, 1.0), False, "without SYS_ADMIN"),
    )
    verdict = Verdict(both, True, False, runs, {}, {SYS_ADMIN: "mount = -1 EPERM"})
    assert "without it: mount = -1 EPERM" in explain(read(verdict=verdict), "SYS_ADMIN")
    assert "its removal was not tried" in explain(read(verdict=verdict), "DAC_READ_SEARCH")
    silent = Verdict(both, True, False, runs)
    assert "without it: 1 made, 0 passed" in explain(read(verdict=silent), "SYS_ADMIN")


def test_control_characters_are_escaped():
    document = render(report())
    document["requirements"][0]["evidence"][0]["process"]["exe"] = "\x1b[31m\n"
    text = explain(Manifest(document))
    assert "\x1b" not in text
    assert "\\x1b[31m\\n" in text


def test_rows_of_other_programs_may_lack_what_is_only_for_people():
    document = render(report())
    document["requirements"] = [{"privilege": "SYS_ADMIN"}]
    del document["verification"]["optional"], document["verification"]["denials"]
    assert "no evidence was recorded" in explain(Manifest(document))


@pytest.mark.parametrize("privilege", EVERYTHING)
def test_labels_are_read_back(privilege):
    found = privilege_of(privilege.label)
    assert found.label == privilege.label
    assert type(found) is type(privilege)


# The catalogue that explain and the table rest on


def test_every_capability_of_the_kernel_has_a_text_and_a_weight():
    assert set(ALLOWS) == set(KERNELS)
    assert set(CAPABILITIES) == set(KERNELS)


@pytest.mark.parametrize(
    ("lighter", "heavier"),
    [
        ("DAC_READ_SEARCH", "DAC_OVERRIDE"),
        ("NET_RAW", "NET_ADMIN"),
        ("FOWNER", "DAC_OVERRIDE"),
        ("NET_ADMIN", "SYS_MODULE"),
        ("PERFMON", "SYS_PTRACE"),
        *(
            (name, "SYS_ADMIN")
            for name in ("BPF", "PERFMON", "CHECKPOINT_RESTORE", "SYSLOG", "SYS_NICE", "SYS_RESOURCE")
        ),
    ],
)
def test_a_substitute_is_lighter_than_what_it_stands_in_for(lighter, heavier):
    assert weight(Capability(lighter)) < weight(Capability(heavier))


def test_all_substitutes_of_sys_admin_together_are_lighter_than_it():
    names = ("BPF", "PERFMON", "CHECKPOINT_RESTORE", "SYSLOG", "SYS_NICE", "SYS_RESOURCE", "NET_ADMIN")
    assert sum(weight(Capability(name)) for name in names) < weight(SYS_ADMIN)


@pytest.mark.parametrize(
    ("lighter", "heavier"),
    [
        (FUSE, Device("/dev/loop0")),
        (Device("/dev/sda", "r"), Device("/dev/sda", "rw")),
        (Device("/dev/loop0"), DeviceClass("b", 7)),
        (DeviceClass("b", 7), DeviceClass("b", 8)),
        (DeviceClass("c", 10, 229), DeviceClass("c", 10, 4711)),
        (Syscalls(("keyctl",)), Syscalls(("keyctl", "add_key"))),
        (Syscalls(("keyctl", "add_key", "request_key")), SecurityOption("seccomp=unconfined")),
        (Syscalls(("unshare",)), SYS_ADMIN),
        (Sysctl("net.ipv4.ip_unprivileged_port_start", "80"), Capability("NET_BIND_SERVICE")),
        (Sysctl("net.ipv4.ip_forward", "1"), SecurityOption("systempaths=unconfined")),
        (Device("/dev/fuse"), Device("/dev/unheard-of")),
        (SYS_ADMIN, Capability("SYS_MODULE")),
    ],
)
def test_weights_are_in_order(lighter, heavier):
    assert 0 < weight(lighter) < weight(heavier)


@pytest.mark.parametrize("path", ["/dev/sda", "/dev/sda1", "/dev/nvme0n1p1", "/dev/vda", "/dev/dm-0", "/dev/mem"])
def test_raw_disks_and_memory_are_heavy(path):
    assert weight(Device(path)) >= 1000


def test_unknown_names_have_a_weight_and_a_reason():
    unknown = (Capability("NEW"), SecurityOption("x=y"), DeviceClass("c", 999), Syscalls(("new_call",)))
    for privilege in (*unknown, AllowList(())):
        assert weight(privilege) > 0
        assert reason(privilege)


# Safer alternatives

SH = Process(1, "/bin/sh")


def needing(privilege, *evidence):
    return Requirement((frozenset({privilege}),), "", Doubt.CERTAIN, evidence)


@pytest.mark.parametrize(
    ("requirement", "flag"),
    [
        (needing(SYS_ADMIN, Observation("mount", ('"none"', '"/mnt"', '"tmpfs"'), 0, "/mnt", SH)), "--tmpfs /mnt"),
        (
            needing(Capability("NET_BIND_SERVICE"), Observation("bind", ("3", "0.0.0.0:80"), 0, None, SH)),
            "--sysctl net.ipv4.ip_unprivileged_port_start=80",
        ),
        (
            needing(Capability("NET_RAW"), Observation("socket", ("AF_INET",), 3, None, Process(1, "/usr/bin/ping"))),
            '--sysctl net.ipv4.ping_group_range="0 2147483647"',
        ),
        (
            needing(Capability("KILL"), Observation("kill", ("1",), 0, None, Process(1, "/usr/bin/tini"))),
            "--init",
        ),
        (
            needing(
                SecurityOption("systempaths=unconfined"),
                Observation("openat", ("x",), 3, "/proc/sys/net/ipv4/ip_forward", SH),
            ),
            "--sysctl net.ipv4.ip_forward=VALUE",
        ),
        (needing(DeviceClass("b", 7), DeviceUse("/dev/loop3", "b", 7, 3, "rw", SH)), "--device /dev/fuse"),
        (needing(Capability("MKNOD"), Observation("mknod", ("x",), 0, "/dev/fuse", SH)), "--device /dev/fuse"),
        (
            needing(BindMount("/sys/fs/cgroup"), Observation("mkdir", ("x",), 0, "/sys/fs/cgroup/x", SH)),
            "--security-opt writable-cgroups=true",
        ),
    ],
)
def test_known_alternatives_are_advised(requirement, flag):
    assert flag in {found.flag for found in advice([requirement])}


def test_advice_without_a_flag_has_a_text():
    clock = needing(Capability("SYS_TIME"), Observation("clock_settime", ("CLOCK_REALTIME",), 0, None, SH))
    (found,) = advice([clock])
    assert found.flag == ""
    assert "host" in found.text
    enabled = "/sys/kernel/mm/transparent_hugepage/enabled"
    (found,) = advice([needing(BindMount(enabled), Observation("openat", ("x",), 3, enabled, SH))])
    assert (found.flag, "host" in found.text) == ("", True)


def test_no_advice_where_nothing_matches():
    assert advice([needing(Capability("CHOWN"), Observation("chown", ("x",), 0, "/x", SH))]) == ()
    assert advice([needing(SYS_ADMIN, RawCall("keyctl", 250, (0,) * 6, SH))]) == ()
    inner = Observation("mknodat", ("5</root>", '"null"'), 0, "/root/dev/null", SH)
    assert advice([needing(Capability("MKNOD"), inner)]) == ()
    staged = Observation("mount", ('"tmpfs"', '"/proc/self/fd/7"', '"tmpfs"'), 0, "/proc/self/fd/7", SH)
    assert advice([needing(SYS_ADMIN, staged)]) == ()
    assert advice([]) == ()


def test_of_many_ports_the_lowest_counts():
    ports = [Observation("bind", ("3", address), 0, None, SH) for address in ("[1:2::3]:443", "0.0.0.0:80", "AF_UNIX")]
    (found,) = advice([needing(Capability("NET_BIND_SERVICE"), *ports)])
    assert found.flag.endswith("port_start=80")


def test_of_many_mounts_a_few_are_shown():
    mounts = [Observation("mount", ('"tmpfs"',), 0, f"/mnt/{number}", SH) for number in range(100)]
    assert len(advice([needing(SYS_ADMIN, *mounts)])) == 3


def test_equal_advice_is_given_once():
    mount = Observation("mount", ('"none"', '"/mnt"', '"tmpfs"'), 0, "/mnt", SH)
    assert len(advice([needing(SYS_ADMIN, mount, mount), needing(SYS_ADMIN, mount)])) == 1


def test_every_row_has_an_id_of_its_own_and_a_condition():
    assert len({row.id for row in ALTERNATIVES}) == len(ALTERNATIVES)
    for row in ALTERNATIVES:
        assert row.capability or row.device or row.path
        assert row.reason
