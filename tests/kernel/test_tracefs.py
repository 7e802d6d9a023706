"""The witness on this kernel: real processes, real checks, and nothing left behind."""

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profiler import leftovers
from profiler.errors import HostError
from profiler.kernel import namespaces
from profiler.tracer.ledger import Ledger
from profiler.witness import instance as tracing
from profiler.witness.events import Accounting, Check, Exec, Exit, Fork, TaskExit
from profiler.witness.tracefs import CheckWitness, probe

pytestmark = pytest.mark.kernel

CALLS = ("chown", "fchown", "fchownat", "execve", "mount", "umount2", "stat", "setuid")


@contextlib.contextmanager
def held(work):
    """A forked child that runs `work` once the byte is written; yields (pid, go). Reaped in any case."""
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(go)
            os.read(ready, 1)
            work()
            status = 0
        finally:
            os._exit(status)
    os.close(ready)
    reaped = []

    def run():
        os.write(go, b"x")
        reaped.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return reaped[0]

    try:
        yield pid, run
    finally:
        os.close(go)
        if not reaped:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def watch(work, calls=CALLS, **options):
    """Run `work` in a watched child; (pid, all events, losses)."""
    with CheckWitness(calls, **options) as witness, held(work) as (pid, run):
        events = []
        witness.arm(pid)
        witness.start(events.extend)
        assert run() == 0
        witness.stop()
        return pid, events, witness.losses()


def kinds(events):
    return {
        (e.kind.call, e.kind.check.capability, e.kind.check.granted, e.kind.check.site, e.kind.check.borrowed)
        for e in events
        if isinstance(e, Check)
    }


def drop_to(uid):
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def private_tmpfs(path):
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.mount(None, Path("/"), None, namespaces.MS_REC | namespaces.MS_PRIVATE)
    namespaces.mount(Path("none"), path, "tmpfs")


def test_this_machine_has_a_witness():
    assert probe() in ("cap_capable", "kprobe")
    assert CheckWitness.probe is probe


def test_a_check_has_its_site_call_and_result_and_the_calls_end_is_seen(tmp_path):
    file = tmp_path / "file"
    file.touch()

    def work():
        fd = os.open(file, os.O_RDONLY)
        os.chown(file, 5, 5)
        drop_to(1000)
        with contextlib.suppress(PermissionError):
            os.fchown(fd, 6, 6)

    pid, events, losses = watch(work)
    assert losses == {}
    found = kinds(events)
    assert ("chown", "CHOWN", True, "setattr_prepare", False) in found
    assert ("fchown", "CHOWN", False, "setattr_prepare", False) in found
    assert ("setuid", "SETUID", True, "__sys_setuid", False) in found
    ends = [(e.pid, e.name, e.result) for e in events if isinstance(e, Exit)]
    assert [end for end in ends if end[1] != "stat"] == [(pid, "chown", 0), (pid, "setuid", 0), (pid, "fchown", -1)]
    stack = next(e.kind.check.stack for e in events if isinstance(e, Check) and e.kind.call == "chown")
    assert stack[0] == "setattr_prepare" and "notify_change" in stack and stack[-1] == "__x64_sys_chown"


def test_events_come_in_the_order_of_time_on_the_monotonic_clock(tmp_path):
    before = time.monotonic_ns()

    def work():
        for number in range(8):
            subprocess.run(["/bin/true"], check=True)
            os.chown(tmp_path, number, 0)

    _, events, _ = watch(work)
    times = [event.time_ns for event in events if not isinstance(event, Accounting)]
    assert times == sorted(times)
    assert before < times[0] and times[-1] < time.monotonic_ns()


def test_children_and_their_children_are_seen_and_others_are_not(tmp_path):
    file = tmp_path / "file"
    file.touch()
    script = f"sh -c 'chown 7 {file}; :'; :"

    def work():
        os.execv("/bin/sh", ["sh", "-c", script])

    with CheckWitness(CALLS) as witness, held(work) as (pid, run):
        events = []
        witness.arm(pid)
        witness.start(events.extend)
        os.chown(file, 8, 8)  # ours: not watched
        subprocess.run(["chown", "9", str(file)], check=True)
        assert run() == 0
        witness.stop()
    children = {event.child for event in events if isinstance(event, Fork)}
    owners = [event for event in events if isinstance(event, Check) and event.kind.check.capability == "CHOWN"]
    assert len(owners) == 1 and owners[0].pid in children
    assert {event.pid for event in events if not isinstance(event, Accounting)} <= children | {pid}
    assert [Path(event.filename).name for event in events if isinstance(event, Exec)] == ["sh", "sh", "chown"]
    assert {event.pid for event in events if isinstance(event, TaskExit)} == children | {pid}
    assert all(event.thread is False for event in events if isinstance(event, Fork))
    # before the trace event came, compilers put cap_capable into cap_vm_enough_memory: a kprobe does not see it there
    if witness.kind == "cap_capable":
        assert sum(event.checks for event in events if isinstance(event, Accounting)) > 10


def test_a_thread_is_told_from_a_process():
    code = "import threading; t = threading.Thread(target=print); t.start(); t.join()"

    def work():
        os.execv(sys.executable, [sys.executable, "-c", code])

    _, events, _ = watch(work)
    assert [event.thread for event in events if isinstance(event, Fork)] == [True]


def test_mounts_in_a_namespace_of_ones_own(tmp_path):
    def work():
        private_tmpfs(tmp_path)
        namespaces.umount2(tmp_path)

    _, events, _ = watch(work)
    found = kinds(events)
    assert ("unshare", "SYS_ADMIN", True, "unshare_nsproxy_namespaces", False) in found
    assert ("mount", "SYS_ADMIN", True, "path_mount", False) in found
    assert ("umount2", "SYS_ADMIN", True, "path_umount", False) in found
    assert ("umount2", 0) in [(event.name, event.result) for event in events if isinstance(event, Exit)]


def test_overlayfs_checks_with_its_mounters_credentials_are_borrowed(tmp_path):
    """One process mounts, another reads a foreign private file: its own check, and the mounter's beside it."""
    ready, told = os.pipe()
    go, start = os.pipe()
    mounter = os.fork()
    if mounter == 0:
        status = 1
        try:
            private_tmpfs(tmp_path)
            for name in ("lower", "upper", "work", "merged"):
                (tmp_path / name).mkdir()
            file = tmp_path / "lower/file"
            file.write_text("x")
            os.chown(file, 1000, 1000)
            file.chmod(0o600)
            data = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
            namespaces.mount(Path("overlay"), tmp_path / "merged", "overlay", 0, data)
            os.write(told, b"x")
            os.read(go, 1)
            status = 0
        finally:
            os._exit(status)
    try:
        assert os.read(ready, 1) == b"x"
        fd = os.open(f"/proc/{mounter}/ns/mnt", os.O_RDONLY)

        def work():
            namespaces.setns(fd)
            os.execv("/bin/cat", ["cat", str(tmp_path / "merged/file")])

        _, events, _ = watch(work)
        os.close(fd)
    finally:
        os.write(start, b"x")
        for pipe in (ready, told, go, start):
            os.close(pipe)
        os.waitpid(mounter, 0)
    found = kinds(events)
    assert ("openat", "DAC_READ_SEARCH", True, "generic_permission", False) in found
    assert ("openat", "DAC_READ_SEARCH", True, "generic_permission", True) in found
    assert ("openat", "FOWNER", True, "ovl_open_realfile", True) in found
    assert ("openat", "FOWNER", True, "ovl_open_realfile", False) not in found


def test_a_netlink_request_on_anothers_socket_has_a_borrowed_check():
    """The socket's opener may, the sender may not: two checks, the first with the opener's credentials."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    message = bytes.fromhex("2000000010000500010000000000000000000000010000000100000001000000")

    def work():
        drop_to(1000)
        mmap.mmap(-1, 4096).close()  # memory accounting shows the new credentials
        with contextlib.suppress(OSError):
            opened.send(message)

    with opened:
        _, events, _ = watch(work)
    found = kinds(events)
    assert ("sendto", "NET_ADMIN", True, "rtnetlink_rcv_msg", True) in found
    assert ("sendto", "NET_ADMIN", False, "rtnetlink_rcv_msg", False) in found


def test_a_check_against_a_user_namespace_of_ones_own_is_foreign():
    def work():
        mmap.mmap(-1, 4096).close()  # as every exec does: memory accounting shows the first user namespace
        namespaces.unshare(namespaces.CLONE_NEWUSER)
        namespaces.unshare(namespaces.CLONE_NEWUTS)

    _, events, _ = watch(work)
    foreign = {
        (event.kind.call, event.kind.check.foreign_namespace)
        for event in events
        if isinstance(event, Check) and event.kind.check.capability == "SYS_ADMIN"
    }
    assert ("unshare", True) in foreign
    assert ("unshare", False) not in foreign


def test_a_task_that_was_not_a_descendant_can_be_followed(tmp_path):
    with (
        CheckWitness(CALLS) as witness,
        held(lambda: None) as (first, run_first),
        held(lambda: os.chown(tmp_path, 3, 3)) as (second, run_second),
    ):
        witness.arm(first)
        witness.follow(second)
        run_first()
        run_second()
        witness.stop()
        events = witness.read(final=True)
    assert [event.pid for event in events if isinstance(event, Check)][:1] == [second]  # and FSETID's


def test_what_a_tiny_buffer_cannot_hold_is_counted(tmp_path):
    def work():
        for number in range(4000):
            os.chown(tmp_path, number & 1, 0)

    with CheckWitness((), buffer_kib=4) as witness, held(work) as (pid, run):
        witness.arm(pid)
        run()
        witness.stop()
        events = witness.read(final=True)
        losses = witness.losses()
    assert losses["overwritten events"] > 0
    seen = sum(isinstance(event, Check) for event in events)
    assert 0 < seen < 4000
    assert witness.losses() == losses  # also after the end


def test_the_ledger_joins_what_the_witness_sees(tmp_path):
    """The listener's part is played by the test: it knows when the call begins."""
    file = tmp_path / "file"
    file.touch()

    def work():
        os.execv("/bin/sh", ["sh", "-c", f"chown 5 {file}; cat {file}"])

    with CheckWitness(CALLS) as witness, held(work) as (pid, run):
        ledger = Ledger(gate=pid)
        witness.arm(pid)
        witness.start(ledger.feed)
        run()
        witness.stop()
    observations, processes = ledger.finish()
    (one,) = [one for one in observations if any(check.capability == "CHOWN" for check in one.checks)]
    assert (one.call, one.count, one.result) == ("fchownat", 1, None)
    assert Path(one.process.exe).name == "chown"
    # named as it was executed when it was gone before it could be looked up
    assert [Path(exe).name for exe in one.process.chain] in (["sh"], [Path("/bin/sh").resolve().name])
    assert processes == 3
    if witness.kind == "cap_capable":
        assert ledger.accounting > 10
        assert sum(one.checks[0].site == "security_vm_enough_memory_mm" for one in observations if one.checks) == 1


def test_nothing_remains_after_close():
    tag = leftovers.owner_tag()
    instances = tracing.tracefs() / "instances"
    with CheckWitness(CALLS), CheckWitness(()) as second:
        assert {f"{tag}", f"{tag}-2"} <= {path.name for path in instances.iterdir()}
        second.close()
        second.close()
        assert f"{tag}-2" not in {path.name for path in instances.iterdir()}
    assert not [path for path in instances.iterdir() if path.name.startswith(tag)]
    assert not [event for event in tracing.probes(tracing.tracefs()) if event.startswith(tracing.probe_group(tag))]


def test_a_sink_that_fails_is_reported_by_stop():
    def sink(events):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), CheckWitness(()) as witness, held(lambda: None) as (pid, run):
        witness.arm(pid)
        witness.start(sink)
        run()
        witness.stop()


def test_what_cannot_be_a_task_is_refused():
    with CheckWitness(()) as witness, pytest.raises(HostError):
        witness.arm(0x7FFFFFF0)


def test_what_a_killed_owner_left_is_removed():
    code = (
        "import os, signal\n"
        "from profiler.witness.tracefs import CheckWitness\n"
        "witness = CheckWitness(['chown']).__enter__()\n"
        "witness.arm(os.getpid())\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code])
    assert owner.wait() == -signal.SIGKILL
    left = [path.name for path in (tracing.tracefs() / "instances").glob(f"{leftovers.PREFIX}-{owner.pid}-*")]
    assert len(left) == 1
    assert left[0] in CheckWitness.clean_leftovers()
    assert not (tracing.tracefs() / "instances" / left[0]).exists()


def test_how_fast_checks_are_read(tmp_path):
    """Prints the cost of a check; asserts nothing about it."""

    def work():
        for number in range(20_000):
            os.chown(tmp_path, number & 1, 0)

    with CheckWitness((), buffer_kib=16384) as witness, held(work) as (pid, run):
        witness.arm(pid)
        run()
        witness.stop()
        started = time.process_time()
        events = witness.read(final=True)
        seconds = time.process_time() - started
        assert witness.losses() == {}
    checks = sum(isinstance(event, Check) for event in events)
    assert checks >= 20_000
    print(f"{seconds / checks * 1e6:.2f} us a check")
