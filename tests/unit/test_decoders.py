"""Decoders read this very process: its memory, working directory and descriptors are real."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.catalogue.calls import FOREIGN, number_of
from profiler.kernel.bpf import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64
from profiler.kernel.notify import Notification
from profiler.tracer.calls import SIGNATURES, DecodedCall, decode
from profiler.tracer.decode.ioctls import COMMANDS
from profiler.tracer.decode.ioctls import name as command_name
from profiler.tracer.decode.netlink import messages
from profiler.tracer.decode.structs import socket_address
from profiler.tracer.decode.values import Tracee, join_flags, quoted

AT_FDCWD = (1 << 64) - 100
GONE = 1 << 30  # no pid is that high
_kept: list[object] = []  # buffers must live as long as their addresses are used


def at(data: bytes) -> int:
    """The address of `data` in this process."""
    buffer = ctypes.create_string_buffer(data, len(data))
    _kept.append(buffer)
    return ctypes.addressof(buffer)


def text(string: str) -> int:
    return at(os.fsencode(string) + b"\0")


def call(name: str, *args: int, pid: int = 0, arch: int = AUDIT_ARCH_X86_64) -> DecodedCall:
    number = number_of(name, FOREIGN if arch == AUDIT_ARCH_I386 else "x86_64")
    assert number is not None
    registers = (*(value & (1 << 64) - 1 for value in args), *(0,) * (6 - len(args)))
    return decode(Notification(1, pid, number, arch, registers, 0), pid or os.getpid())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    _kept.clear()


def test_mount() -> None:
    found = call("mount", text("tmpfs"), text("/mnt"), text("tmpfs"), 0xC0ED0000 | 2 | 8, text("size=1m"))
    assert found == ("mount", ('"tmpfs"', '"/mnt"', '"tmpfs"', "MS_NOSUID|MS_NOEXEC", '"size=1m"'), "/mnt")
    found = call("mount", 0, text("/a"), 0, 4096 | 16384 | 1 << 30, 0)
    assert found.args == ("NULL", '"/a"', "NULL", "MS_BIND|MS_REC|0x40000000", "NULL")


def test_paths_are_absolute_as_the_tracee_sees_them(tmp_path: Path) -> None:
    assert call("chroot", text("sub/dir")).path == f"{tmp_path}/sub/dir"
    assert call("chroot", text("./x")).path == f"{tmp_path}/x"
    assert call("chroot", text(".")).path == str(tmp_path)
    assert call("chroot", text("../x")).path == f"{tmp_path}/../x"
    fd = os.open("/usr", os.O_RDONLY)
    try:
        found = call("openat", fd, text("share"), os.O_WRONLY | os.O_CREAT, 0o644)
        assert found == ("openat", (f"{fd}</usr>", '"share"', "O_WRONLY|O_CREAT", "0644"), "/usr/share")
        assert call("fchown", fd, 5, -1) == ("fchown", (f"{fd}</usr>", "5", "-1"), "/usr")
        assert call("fchownat", fd, text(""), 5, -1, 0x1000).path == "/usr"
        assert call("move_mount", fd, text(""), AT_FDCWD, text("/here"), 4).path == "/here"
    finally:
        os.close(fd)
    assert call("openat", AT_FDCWD, text("f"), os.O_RDWR, 0o7777).args == ("AT_FDCWD", '"f"', "O_RDWR")
    assert call("openat", AT_FDCWD, text("f"), os.O_RDWR | os.O_TMPFILE, 0o600).args[2:] == (
        "O_RDWR|O_TMPFILE",
        "0600",
    )


def test_a_path_below_the_tracees_root_is_shown_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    links = {"/proc/5/root": "/var/jail", "/proc/5/cwd": "/var/jail/home", "/proc/5/fd/3": "socket:[7]"}
    monkeypatch.setattr(os, "readlink", links.__getitem__)
    assert Tracee(5).absolute("x") == "/home/x"
    assert Tracee(5).fd(3) == "socket:[7]"


def test_sockets() -> None:
    assert call("socket", 16, 3 | 0o2000000, 12).args == ("AF_NETLINK", "SOCK_RAW|SOCK_CLOEXEC", "NETLINK_NETFILTER")
    assert call("socket", 2, 3, 1).args == ("AF_INET", "SOCK_RAW", "IPPROTO_ICMP")
    assert call("socket", 17, 3, socket.htons(3)).args[2] == "htons(0x0003)"
    four = struct.pack("<H", 2) + struct.pack(">H", 80) + bytes((127, 0, 0, 1)) + bytes(8)
    assert call("bind", 3, at(four), len(four)) == ("bind", ("3", "127.0.0.1:80", "16"), None)
    six = struct.pack("<H", 10) + struct.pack(">HI", 443, 0) + bytes(16) + bytes(4)
    assert call("bind", 3, at(six), len(six)).args[1] == "[::]:443"
    unix = struct.pack("<H", 1) + b"run/s\0"
    found = call("bind", 3, at(unix), len(unix))
    assert found.args[1] == '"run/s"'
    assert found.path == str(Path.cwd() / "run/s")
    abstract = struct.pack("<H", 1) + b"\0name"
    assert call("bind", 3, at(abstract), len(abstract)) == ("bind", ("3", '"@name"', "7"), None)
    assert call("setsockopt", 3, 1, 36, at(struct.pack("<i", 7)), 4).args == ("3", "SOL_SOCKET", "SO_MARK", "7", "4")
    assert call("setsockopt", 3, 1, 25, at(b"eth0\0"), 5).args[2:4] == ("SO_BINDTODEVICE", '"eth0"')
    assert call("getsockopt", 3, 0, 64).args == ("3", "SOL_IP", "IPT_SO_GET_INFO")


def test_a_ring() -> None:
    parameters = at(struct.pack("<4I", 0, 0, 1 << 1 | 1 << 4, 7))
    assert call("io_uring_setup", 8, parameters).args == ("8", "{IORING_SETUP_SQPOLL|IORING_SETUP_CLAMP}")
    assert call("io_uring_setup", 8, 0).args == ("8", "NULL")


def test_ioctls() -> None:
    assert call("ioctl", 99, 0x8914, at(b"eth0".ljust(40, b"\0"))).args == ("99", "SIOCSIFFLAGS", '"eth0"')
    assert call("ioctl", 99, 0x4C82, 0).args == ("99", "LOOP_CTL_GET_FREE", "0")
    assert command_name(0x40047BCD) == "_IOW(0x7b, 205, 4)"
    assert command_name(0x4CFF) == "_IO(0x4c, 255)"
    assert command_name(2) == "0x2"
    assert len(COMMANDS) == len(set(COMMANDS.values()))


def test_credentials() -> None:
    assert call("setresuid", -1, 1000, -1).args == ("-1", "1000", "-1")
    assert call("setuid", 4294967294).args == ("4294967294",)
    assert call("setgroups", 2, at(struct.pack("<2I", 4, 27))).args == ("2", "[4, 27]")
    assert call("prctl", 24, 21).args == ("PR_CAPBSET_DROP", "CAP_SYS_ADMIN", "0")
    assert call("prctl", 47, 2, 13).args == ("PR_CAP_AMBIENT", "PR_CAP_AMBIENT_RAISE", "CAP_NET_RAW")
    assert call("prctl", 28, 3).args[1] == "SECBIT_NOROOT|SECBIT_NOROOT_LOCKED"
    header = at(struct.pack("<Ii", 0x20080522, 0))
    data = struct.pack("<6I", 1 << 12, 1 << 12 | 1, 0, 1, 0, 0)
    assert call("capset", header, at(data)).args[1] == (
        "{effective=NET_ADMIN,MAC_OVERRIDE permitted=CHOWN,NET_ADMIN inheritable=none}"
    )
    assert call("capset", header, at(data)).args[0] == "{pid=0}"
    everything = struct.pack("<6I", 0xFFFFFFFE, 0, 0, 0x1FF, 0, 0)
    assert call("capset", header, at(everything)).args[1].startswith("{effective=all-CHOWN permitted=none")


def test_limits_and_scheduling() -> None:
    assert call("prlimit64", 0, 7, at(struct.pack("<2Q", 1024, (1 << 64) - 1)), 0).args == (
        "0", "RLIMIT_NOFILE", "{1024, RLIM_INFINITY}", "NULL",
    )  # fmt: skip
    assert call("ioprio_set", 1, 0, 1 << 13 | 4).args == ("IOPRIO_WHO_PROCESS", "0", "IOPRIO_CLASS_RT|4")
    assert call("sched_setscheduler", 0, 1, at(struct.pack("<i", 10))).args == ("0", "SCHED_FIFO", "[10]")
    attributes = struct.pack("<IIQiIQQQ", 48, 2, 0, -5, 3, 0, 0, 0)
    assert call("sched_setattr", 0, at(attributes), 0).args[1] == "{SCHED_RR, nice=-5, priority=3}"
    assert call("setpriority", 0, 0, -5).args == ("PRIO_PROCESS", "0", "-5")


def test_new_mount_calls() -> None:
    assert call("fsconfig", 3, 1, text("source"), text("/dev/loop0"), 0).args == (
        "3", "FSCONFIG_SET_STRING", '"source"', '"/dev/loop0"', "0",
    )  # fmt: skip
    attributes = struct.pack("<4Q", 1, 0, 1 << 18, 0)
    assert call("mount_setattr", AT_FDCWD, text("/m"), 0x8000, at(attributes), 32).args == (
        "AT_FDCWD", '"/m"', "AT_RECURSIVE", "{set=MOUNT_ATTR_RDONLY, propagation=MS_PRIVATE}", "32",
    )  # fmt: skip
    how = struct.pack("<3Q", os.O_RDWR, 0, 8)
    assert call("openat2", AT_FDCWD, text("/m"), at(how), 24).args[2] == "{O_RDWR, 0, resolve=0x8}"


def test_namespaces_devices_and_signals() -> None:
    assert call("unshare", 0x20000 | 0x80).args == ("CLONE_NEWTIME|CLONE_NEWNS",)
    assert call("clone", 0x10000000 | 17).args == ("CLONE_NEWUSER|17",)
    found = call("mknodat", AT_FDCWD, text("/dev/x"), 0o60660, os.makedev(7, 300))
    assert found == ("mknodat", ("AT_FDCWD", '"/dev/x"', "060660", "makedev(7, 300)"), "/dev/x")
    assert call("kill", -1, 15).args == ("-1", "SIGTERM")
    assert call("kill", 4, 0).args == ("4", "0")


def test_a_32_bit_call_has_its_own_name_and_numbers() -> None:
    found = call("mount", 1, 2, 3, arch=AUDIT_ARCH_I386)
    assert found.name == "mount"
    assert found.args == ("0x1", "0x2", "0x3", "0", "0", "0")
    assert call("setuid32", 1000, arch=AUDIT_ARCH_I386).name == "setuid32"


def test_strings_are_safe_for_a_terminal() -> None:
    assert quoted('a"b\\\n\x1b[0m') == '"a\\"b\\\\\\n\\x1b[0m"'
    assert quoted(os.fsdecode(b"\xff")) == '"\\xff"'
    assert call("sethostname", text("x" * 100), 100).args[0] == '"' + "x" * 64 + '"…'
    assert join_flags(0, {1: "A"}) == "0"


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_nothing_fails_for_a_process_that_is_gone(name: str) -> None:
    assert call(name, *(0x1234,) * 6, pid=GONE).name == name


VALUES = st.one_of(
    st.integers(0, 64), st.integers(0, (1 << 64) - 1), st.sampled_from([(1 << 64) - 1, AT_FDCWD, 1 << 32, 1 << 47])
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SIGNATURES)), st.lists(VALUES, min_size=6, max_size=6), st.binary(max_size=200))
def test_nothing_fails_whatever_the_registers_say(name: str, values: list[int], data: bytes) -> None:
    found = call(name, *values)
    assert all(isinstance(arg, str) for arg in found.args)
    address = at(data or b"\0")
    assert call(name, *(address,) * 6).name == name
    assert socket_address(data) is None or len(data) >= 2


def _link_message(kind: int, *attributes: bytes) -> bytes:
    body = struct.pack("BxHiII", 0, 0, 3, 0, 0) + b"".join(attributes)
    return struct.pack("IHHII", 16 + len(body), kind, 5, 1, 0) + body


def test_netlink_messages_say_what_they_ask_for() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route:
        message = _link_message(16, struct.pack("HH8s", 12, 3, b"eth0"))
        found = call("sendto", route.fileno(), at(message), len(message), 0, 0, 0)
        assert found.args[:3] == (f"{route.fileno()}<NETLINK_ROUTE>", '{RTM_NEWLINK "eth0"}', str(len(message)))
        message = _link_message(17)
        vector = at(struct.pack("QQ", at(message), len(message)))
        header = at(struct.pack("QQQQQQQ", 0, 0, vector, 1, 0, 0, 0))
        assert call("sendmsg", route.fileno(), header, 0x40).args[1:] == ("{RTM_DELLINK ifindex=3}", "MSG_DONTWAIT")


def test_what_is_no_netlink_is_an_address() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert call("sendto", left.fileno(), 0, 0, 0, 0, 0).args[:2] == (str(left.fileno()), "NULL")


@pytest.mark.parametrize(
    ("kind", "number", "shown"),
    [
        (12, 16, ""),  # a batch's begin says nothing
        (12, 10 << 8 | 0, "{NFT_MSG_NEWTABLE}"),
        (12, 6 << 8 | 2, "{IPSET_CMD_CREATE}"),
        (12, 1 << 8 | 1, "{IPCTNL_MSG_CT_GET}"),
        (12, 3 << 8 | 2, "{QUEUE 2}"),
        (9, 1000, "{AUDIT_GET}"),
        (9, 1107, "{AUDIT_USER_MSG 1107}"),
        (4, 21, "{SOCK_DESTROY}"),
        (6, 21, "{XFRM_MSG_GETPOLICY}"),
        (0, 24, "{RTM_NEWROUTE}"),
        (16, 30, "{type 30}"),
    ],
)
def test_netlink_types(kind: int, number: int, shown: str) -> None:
    assert messages(struct.pack("IHHII", 16, number, 1, 1, 0), kind) == shown


@given(st.binary(max_size=200), st.sampled_from([0, 4, 6, 9, 12, 16, 99]))
def test_any_bytes_are_shown_as_some_message(content: bytes, kind: int) -> None:
    messages(content, kind)


def test_execve_shows_its_words() -> None:
    vector = at(struct.pack("QQQ", text("ls"), text("-l"), 0))
    assert call("execve", text("/bin/ls"), vector, 0) == ("execve", ('"/bin/ls"', '["ls", "-l"]'), "/bin/ls")


def test_paths_of_calls_that_only_a_watched_run_stops() -> None:
    assert call("newfstatat", AT_FDCWD, text("f"), 0, 0).path == str(Path.cwd()) + "/f"
    assert call("faccessat2", AT_FDCWD, text("f"), 6).args == ("AT_FDCWD", '"f"', "R_OK|W_OK")
    assert call("unlinkat", AT_FDCWD, text("d"), 0x200).args == ("AT_FDCWD", '"d"', "AT_REMOVEDIR")
    assert call("symlinkat", text("to"), AT_FDCWD, text("l")).path == str(Path.cwd()) + "/l"


def test_events_say_what_they_count() -> None:
    attributes = struct.pack("=IIQQQQQ", 1, 136, 3, 0, 0, 0, 1 << 5)
    assert call("perf_event_open", at(attributes), -1, 0, -1, 8).args == (
        "{PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CONTEXT_SWITCHES, exclude_kernel}", "-1", "0", "-1", "0x8",
    )  # fmt: skip
    attributes = struct.pack("=IIQQQQQ", 9, 136, 0x1234, 0, 0, 0, 0)
    assert call("perf_event_open", at(attributes), 0, -1, -1, 0).args[0] == "{type=9, config=0x1234}"
    assert call("perf_event_open", 8, 0, -1, -1, 0).args[0] == "0x8"


def test_programs_and_maps_say_of_which_type_they_are() -> None:
    program = struct.pack("=I44x16s", 2, b"count_opens")
    assert call("bpf", 5, at(program), 64).args == ("BPF_PROG_LOAD", '{BPF_PROG_TYPE_KPROBE, "count_opens"}', "64")
    kind = struct.pack("=I24x16s", 1, b"counts")
    assert call("bpf", 0, at(kind), 44).args[1] == '{BPF_MAP_TYPE_HASH, "counts"}'
    assert call("bpf", 5, at(struct.pack("=I", 99)), 4).args[1] == "{type=99}"
    assert call("bpf", 12, 8, 4).args[1] == "0x8"


def test_keys_are_named() -> None:
    assert call("keyctl", 1, text("mine"), 0x7FFC_0000_1000).args == ("KEYCTL_JOIN_SESSION_KEYRING", '"mine"')
    assert call("keyctl", 18, 5).args == ("KEYCTL_SESSION_TO_PARENT",)
    assert call("keyctl", 6, -3).args[:2] == ("KEYCTL_DESCRIBE", "KEY_SPEC_SESSION_KEYRING")
    assert call("keyctl", 11, 77).args[:2] == ("KEYCTL_READ", "77")


def test_personas_are_named() -> None:
    assert call("personality", 0x40000).args == ("ADDR_NO_RANDOMIZE",)
    assert call("personality", 8).args == ("PER_LINUX32",)
    assert call("personality", 0).args == ("PER_LINUX",)


def test_who_gets_a_signal_is_named_if_the_caller_has_started_it():
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        program = os.path.realpath("/bin/sleep")
        assert call("kill", child.pid, 15).args == (f"{child.pid}<child {program}>", "SIGTERM")
        child.kill()
    assert call("kill", child.pid, 15).args == (str(child.pid), "SIGTERM")
    assert call("kill", os.getppid(), 0).args == (str(os.getppid()), "0")
