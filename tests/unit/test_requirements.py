"""Which requirements a trace shows, and how sure they are."""

import pytest

from profiler.model import (
    Capability,
    Device,
    DeviceClass,
    DeviceUse,
    Doubt,
    KernelCheck,
    Observation,
    Process,
    RawCall,
    SecurityOption,
    Syscalls,
    Trace,
)
from profiler.synthesizer.denials import denied
from profiler.synthesizer.pools import Pools
from profiler.synthesizer.reduce import reduce
from profiler.synthesizer.requirements import requirements, seccomp_requirements

SHELL = Process(10, "/bin/sh", ("sh",), 0)
EVERYTHING = frozenset({"SYS_ADMIN", "DAC_READ_SEARCH", "DAC_OVERRIDE", "SETUID", "NET_RAW", "NET_ADMIN", "SETFCAP"})


def call(name, checks=(), result=0, args=(), path=None, process=SHELL):
    return Observation(name, args, result, path, process, tuple(checks))


def check(capability, site, granted=True, **kw):
    return KernelCheck(capability, granted, site, **kw)


def found(*observations, devices=(), grantable=EVERYTHING, confined=True, pools=None):
    trace = Trace(observations, devices, (), {}, 0, 0.0)
    rows = requirements(trace, grantable, Pools(pools or {}), confined=confined)
    return {tuple(sorted(p.label for a in row.alternatives for p in a)): row.doubt for row in rows}


def test_a_mount_is_certain():
    assert found(call("mount", [check("SYS_ADMIN", "path_mount")])) == {("SYS_ADMIN",): Doubt.CERTAIN}


def test_a_call_that_fails_anyway_is_doubtful():
    assert found(call("mount", [check("SYS_ADMIN", "path_mount")], result=-22)) == {("SYS_ADMIN",): Doubt.DOUBTFUL}


def test_memory_accounting_is_negligible():
    rows = found(call("mmap", [check("SYS_ADMIN", "security_vm_enough_memory_mm")], result=None))
    assert rows == {("SYS_ADMIN",): Doubt.NEGLIGIBLE}


def test_borrowed_and_foreign_checks_need_nothing():
    assert not found(
        call("openat", [check("SYS_ADMIN", "xattr_permission", borrowed=True)]),
        call("unshare", [check("SYS_ADMIN", "unshare_nsproxy_namespaces", foreign_namespace=True)]),
        call("mount", [check("SYS_ADMIN", "path_mount", granted=False)], result=-1),
    )


def test_who_is_not_the_owner_of_a_user_namespace_needs_the_capability_itself():
    """newuidmap is root and maps its caller's namespace; the caller itself needs nothing there."""
    user = Process(11, "/bin/unshare", (), 1000)
    made = call("unshare", args=("CLONE_NEWUSER|CLONE_NEWNS",), process=user)
    asked = check("SYS_ADMIN", "map_write", foreign_namespace=True, from_above=True)
    assert found(made, call("write", [asked])) == {("SYS_ADMIN",): Doubt.LIKELY}
    assert not found(made, call("write", [asked], process=user))
    inside = check("SYS_ADMIN", "map_write", foreign_namespace=True)
    assert not found(made, call("write", [inside]))


def test_a_read_of_a_foreign_file_takes_either_capability():
    assert found(call("openat", [check("DAC_READ_SEARCH", "generic_permission")], result=None)) == {
        ("DAC_OVERRIDE", "DAC_READ_SEARCH"): Doubt.LIKELY
    }


def test_a_refusal_to_the_first_process_is_likelier_the_workloads_own():
    """Its exit code is the workload's; useradd tells that it cannot fill a home directory, and goes on."""
    useradd = Process(11, "/usr/sbin/useradd", (), 0, ("/bin/sh",))
    asked = check("FOWNER", "setattr_prepare")
    grantable = frozenset({"FOWNER"})
    assert found(call("fchmod", [asked], process=useradd), grantable=grantable) == {("FOWNER",): Doubt.EVEN}
    assert found(call("fchmod", [asked]), grantable=grantable) == {("FOWNER",): Doubt.LIKELY}


@pytest.mark.parametrize(
    ("whom", "chain", "doubt"),
    [
        ("7<child /usr/sbin/apache2>", ("/bin/sh",), Doubt.DOUBTFUL),
        ("-7", ("/bin/sh",), Doubt.DOUBTFUL),
        ("0", (), Doubt.LIKELY),
        ("7", ("/bin/sh",), Doubt.LIKELY),
        ("7<child /usr/sbin/haproxy>", (), Doubt.LIKELY),
    ],
)
def test_a_service_may_leave_what_it_has_started_to_itself(whom, chain, doubt):
    sender = Process(11, "/usr/bin/sender", (), 0, chain)
    sent = call("kill", [check("KILL", "check_kill_permission")], args=(whom, "SIGTERM"), process=sender)
    assert found(sent, grantable=frozenset({"KILL"})) == {("KILL",): doubt}


@pytest.mark.parametrize(("name", "doubt"), [("read", Doubt.DOUBTFUL), ("readlink", Doubt.EVEN)])
def test_reading_of_another_process_fails_or_shows_less(name, doubt):
    looker = Process(11, "/usr/bin/looker", (), 0, ("/bin/sh",))
    asked = call(name, [check("SYS_PTRACE", "__ptrace_may_access")], process=looker)
    assert found(asked, grantable=frozenset({"SYS_PTRACE"})) == {("SYS_PTRACE",): doubt}


def test_only_what_can_be_granted_is_an_alternative():
    rows = found(
        call("openat", [check("DAC_READ_SEARCH", "generic_permission")], result=None),
        grantable=frozenset({"DAC_OVERRIDE"}),
    )
    assert rows == {("DAC_OVERRIDE",): Doubt.LIKELY}


def test_setuid_to_the_same_id_is_doubtful():
    same = call("setuid", [check("SETUID", "__sys_setuid")], args=("0",))
    other = call("setuid", [check("SETUID", "__sys_setuid")], args=("33",))
    assert found(same) == {("SETUID",): Doubt.DOUBTFUL}
    assert found(same, other) == {("SETUID",): Doubt.LIKELY}


@pytest.mark.parametrize(("to", "doubt"), [("0", Doubt.LIKELY), ("1000", Doubt.DOUBTFUL)])
def test_a_set_user_id_program_takes_over_or_steps_back(to, doubt):
    """su(1) of uid 1000 becomes root in its real id, too; newgrp(1) goes back to its real id, as all may."""
    program = Process(11, "/usr/bin/su", (), 0, ("/bin/sh",), real_uid=1000)
    became = call("setuid", [check("SETUID", "__sys_setuid")], args=(to,), process=program)
    assert found(became) == {("SETUID",): doubt}


def test_a_sysctl_written_in_a_container_needs_unmasked_paths():
    write = call("openat", args=("AT_FDCWD", "/proc/sys/net/ipv4/ip_forward"), path="/proc/sys/net/ipv4/ip_forward")
    assert found(write) == {("systempaths=unconfined",): Doubt.LIKELY}
    assert not found(write, confined=False)


@pytest.mark.parametrize(
    ("name", "args", "foreign", "result", "doubt"),
    [
        ("mount", ('"proc"', '"/newroot/proc"', '"proc"', "MS_NOSUID", "NULL"), True, 0, Doubt.LIKELY),
        ("mount", ('"proc"', '"/newroot/proc"', '"proc"', "MS_NOSUID", "NULL"), True, -1, Doubt.DOUBTFUL),
        ("mount", ('"proc"', '"/newroot/proc"', '"proc"', "0", "NULL"), False, 0, None),
        ("mount", ('"/oldroot/proc"', '"proc"', "NULL", "MS_BIND|MS_REC", "NULL"), True, 0, None),
        ("mount", ('"proc"', '"/proc"', '"proc"', "MS_BIND|MS_REMOUNT", "NULL"), True, 0, None),
        ("mount", ('"none"', '"/proc"', '"tmpfs"', "0", "NULL"), True, 0, None),
        ("fsopen", ('"sysfs"', "FSOPEN_CLOEXEC"), True, 5, Doubt.LIKELY),
        ("fsopen", ('"sysfs"', "FSOPEN_CLOEXEC"), None, 5, Doubt.DOUBTFUL),
    ],
)
def test_a_fresh_proc_of_a_child_user_namespace_needs_unmasked_paths(name, args, foreign, result, doubt):
    checks = [] if foreign is None else [check("SYS_ADMIN", "may_mount", foreign_namespace=foreign)]
    rows = found(call(name, checks, result, args))
    assert rows.get(("systempaths=unconfined",)) == doubt


def test_root_that_maps_itself_needs_setfcap_though_nothing_is_checked():
    assert found(call("openat", path="/proc/self/uid_map")) == {("SETFCAP",): Doubt.LIKELY}
    user = Process(10, "/usr/bin/unshare", (), 1000)
    assert not found(call("openat", path="/proc/self/uid_map", process=user))


def test_devices_join_their_access_and_pools_become_classes():
    uses = (
        DeviceUse("/dev/fuse", "c", 10, 229, "r", SHELL),
        DeviceUse("/dev/fuse", "c", 10, 229, "w", SHELL),
        DeviceUse("/dev/loop3", "b", 7, 3, "rw", SHELL),
        DeviceUse("/srv/null2", "c", 1, 3, "rw", SHELL, made=True),
    )
    trace = Trace((), uses, (), {}, 0, 0.0)
    rows = requirements(trace, EVERYTHING, Pools({("b", 7): ("/dev/loop0", "/dev/loop3")}), confined=True)
    assert {next(iter(row.alternatives[0])) for row in rows} == {
        Device("/dev/fuse", "rw"),
        DeviceClass("b", 7, None, "rw", ("/dev/loop0", "/dev/loop3")),
        DeviceClass("c", 1, 3, "rwm"),
    }


def test_a_node_that_a_mount_brings_lacks_a_rule_and_nothing_else():
    uses = (
        DeviceUse("/opt/fuse", "c", 10, 229, "r", SHELL, bound=True),
        DeviceUse("/opt/fuse", "c", 10, 229, "rw", Process(11, "/bin/other"), bound=True),
        DeviceUse("/host/dev/loop3", "b", 7, 3, "r", SHELL, bound=True),
    )
    trace = Trace((), uses, (), {}, 0, 0.0)
    rows = requirements(trace, EVERYTHING, Pools({("b", 7): ("/dev/loop0", "/dev/loop3")}), confined=True)
    assert {next(iter(row.alternatives[0])) for row in rows} == {
        DeviceClass("c", 10, 229, "rw"),
        DeviceClass("b", 7, None, "rw"),
    }


def test_refused_calls_are_one_requirement_each():
    pivot = RawCall("pivot_root", 155, (0, 0, 0, 0, 0, 0), SHELL, result=0)
    failing = RawCall("ptrace", 101, (0, 0, 0, 0, 0, 0), SHELL, result=-1)
    placing = RawCall("set_mempolicy", 238, (0, 0, 0, 0, 0, 0), SHELL, result=0)
    rows = {row.alternatives[0]: row.doubt for row in seccomp_requirements([pivot, failing, placing])}
    assert rows == {
        frozenset({Syscalls(("pivot_root",))}): Doubt.LIKELY,
        frozenset({Syscalls(("ptrace",))}): Doubt.DOUBTFUL,
        frozenset({Syscalls(("set_mempolicy",))}): Doubt.DOUBTFUL,
    }


@pytest.mark.parametrize(("option", "doubt"), [("SO_RCVBUFFORCE", Doubt.DOUBTFUL), ("SO_MARK", Doubt.LIKELY)])
def test_a_row_may_ask_for_a_word_of_the_arguments(option, doubt):
    observed = call("setsockopt", [check("NET_ADMIN", "sk_setsockopt")], args=("5", "SOL_SOCKET", option, "8"))
    assert found(observed) == {("NET_ADMIN",): doubt}


def weight(privilege):
    return {"DAC_READ_SEARCH": 1}.get(privilege.name, 2)


def missing(trace, recipe):
    return reduce(denied(trace, recipe, EVERYTHING), weight, up_to=Doubt.DOUBTFUL)


def test_denied_takes_the_refused_call_and_not_the_probe():
    trace = Trace(
        (
            call("openat", [check("DAC_READ_SEARCH", "generic_permission", False),
                            check("DAC_OVERRIDE", "generic_permission", False)], result=-13),
            call("mmap", [check("SYS_ADMIN", "security_vm_enough_memory_mm", False)], result=None),
            call("access", [check("DAC_OVERRIDE", "generic_permission", False)], result=-13),
        ),
        (), (), {}, 1, 0.0,
    )  # fmt: skip
    assert missing(trace, frozenset()) == {Capability("DAC_READ_SEARCH")}


def test_denied_shows_what_was_refused():
    refused = call("mount", [check("SYS_ADMIN", "path_mount", False)], result=-1)
    (row,) = denied(Trace((refused,), (), (), {}, 1, 0.0), frozenset(), EVERYTHING)
    assert row.evidence == (refused,)


def test_denied_finds_nothing_that_is_held():
    trace = Trace((call("mount", [check("SYS_ADMIN", "path_mount", False)], result=-1),), (), (), {}, 1, 0.0)
    assert missing(trace, frozenset({Capability("SYS_ADMIN")})) == frozenset()
    assert missing(trace, frozenset({SecurityOption("x")})) == {Capability("SYS_ADMIN")}


def test_a_capset_to_a_list_needs_what_is_on_it():
    """An engine inside the workload gives its own containers a list; a program that drops keeps what it holds."""
    sets = "{effective=SETUID permitted=SETUID,NET_RAW,SYS_TIME inheritable=none}"
    assert found(call("capset", args=("{version=3, pid=0}", sets))) == {
        ("NET_RAW",): Doubt.DOUBTFUL,
        ("SETUID",): Doubt.DOUBTFUL,
    }
    assert not found(call("capset", args=("{}", "{effective=all permitted=all-NET_RAW inheritable=none}")))
    assert not found(call("capset", args=("{}", "{effective=none permitted=none inheritable=none}")))
    assert not found(call("capset", args=("{}", sets), result=-1))
    assert found(call("capset", args=("{}", "{effective=none permitted=all inheritable=NET_RAW}"))) == {
        ("NET_RAW",): Doubt.DOUBTFUL
    }


def test_an_ambient_capability_must_be_held():
    raise_ = ("PR_CAP_AMBIENT", "PR_CAP_AMBIENT_RAISE", "CAP_NET_RAW")
    assert found(call("prctl", args=raise_)) == {("NET_RAW",): Doubt.LIKELY}
    assert not found(call("prctl", args=raise_, result=-1))
    assert not found(call("prctl", args=("PR_CAP_AMBIENT", "PR_CAP_AMBIENT_LOWER", "CAP_NET_RAW")))


def test_one_site_means_different_things_on_different_ways():
    """Whether a program may be dumped decides nothing, the way to it is tried directory by directory."""
    ways = {"would_dump": Doubt.NEGLIGIBLE, "link_path_walk": Doubt.DOUBTFUL, "do_open": Doubt.LIKELY}
    for way, doubt in ways.items():
        asked = check("DAC_READ_SEARCH", "generic_permission", stack=("x.isra.0", f"{way}.part.0"))
        assert found(call("execve", [asked])) == {("DAC_OVERRIDE", "DAC_READ_SEARCH"): doubt}


@pytest.mark.parametrize(
    ("args", "doubt"),
    [((), Doubt.NEGLIGIBLE), (("3</f>", "04755"), Doubt.NEGLIGIBLE), (("3</f>", "02755"), Doubt.LIKELY)],
)
def test_a_mode_without_a_group_bit_loses_none(args, doubt):
    observed = call("fchmod", [check("FSETID", "setattr_prepare")], args=args)
    assert found(observed, grantable=frozenset({"FSETID"})) == {("FSETID",): doubt}


def test_what_hands_out_nodes_of_a_pool_is_doubtful_beside_them():
    """Without /dev/loop-control libmount and losetup try the loop nodes in turn."""
    control = DeviceUse("/dev/loop-control", "c", 10, 237, "rw", SHELL)
    node = DeviceUse("/dev/loop0", "b", 7, 0, "rw", SHELL)
    pools = {("b", 7): ("/dev/loop0",)}
    assert found(devices=(control,)) == {("/dev/loop-control:rw",): Doubt.LIKELY}
    assert found(devices=(control, node), pools=pools) == {
        ("b 7:* rw",): Doubt.LIKELY,
        ("/dev/loop-control:rw",): Doubt.DOUBTFUL,
    }


def test_what_surely_needs_it_is_the_evidence_and_not_what_may():
    buffer = call("setsockopt", [check("NET_ADMIN", "sk_setsockopt")], args=("3", "SOL_SOCKET", "SO_SNDBUFFORCE"))
    rules = call("sendmsg", [check("NET_ADMIN", "nfnetlink_rcv")])
    trace = Trace((buffer, rules), (), (), {}, 0, 0.0)
    (row,) = requirements(trace, EVERYTHING, Pools({}), confined=True)
    assert row.evidence == (rules,)
    (row,) = requirements(Trace((buffer,), (), (), {}, 0, 0.0), EVERYTHING, Pools({}), confined=True)
    assert row.evidence == (buffer,)


def test_a_node_that_was_written_to_is_told_before_those_that_were_looked_at():
    looked = tuple(DeviceUse(f"/dev/loop{n}", "b", 7, n, "r", SHELL) for n in range(20))
    taken = DeviceUse("/dev/loop20", "b", 7, 20, "rw", SHELL)
    trace = Trace((), (*looked, taken), (), {}, 0, 0.0)
    (row,) = requirements(trace, EVERYTHING, Pools({("b", 7): ("/dev/loop20",)}), confined=True)
    assert row.evidence[0] == taken
