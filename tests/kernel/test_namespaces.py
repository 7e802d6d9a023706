"""Each wrapper does what its call does, in a child that leaves nothing behind; capability sets of a real process."""

from __future__ import annotations

import errno
import os
import signal
import socket
from pathlib import Path

import pytest

from profiler.kernel import namespaces
from profiler.kernel.capabilities import drop_bounding, names, set_own, sets_of
from profiler.kernel.namespaces import (
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MNT_DETACH,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    mount,
    pidfd_getfd,
    pidfd_open,
    pidfd_send_signal,
    pivot_root,
    sethostname,
    setns,
    umount2,
    unshare,
)

pytestmark = pytest.mark.kernel


def in_child(work):
    """Run `work` in a forked child and return what it returned, as text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = str(work())
        except BaseException as error:
            answer = repr(error)
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(pid, 0)
    return answer


def private_mounts():
    unshare(CLONE_NEWNS)
    mount(None, "/", None, MS_REC | MS_PRIVATE)


def test_mount_and_umount(tmp_path):
    def work():
        private_mounts()
        mount("tmpfs", tmp_path, "tmpfs", 0, "size=64k")
        was = os.path.ismount(tmp_path)
        umount2(tmp_path, MNT_DETACH)
        return was, os.path.ismount(tmp_path)

    assert in_child(work) == "(True, False)"
    assert not os.path.ismount(tmp_path)


def test_pivot_root(tmp_path):
    (tmp_path / "here").touch()

    def work():
        private_mounts()
        mount(tmp_path, tmp_path, None, MS_BIND)
        os.chdir(tmp_path)
        pivot_root(".", ".")
        umount2(".", MNT_DETACH)
        return [path.name for path in Path("/").iterdir()]

    assert in_child(work) == "['here']"


def test_hostname_and_the_way_back():
    def work():
        before = os.open("/proc/self/ns/uts", os.O_RDONLY)
        unshare(CLONE_NEWUTS)
        sethostname("gatehouse")
        inside = socket.gethostname()
        setns(before, CLONE_NEWUTS)
        return inside, socket.gethostname() == name

    name = socket.gethostname()
    assert in_child(work) == "('gatehouse', True)"


def test_an_error_names_the_call_and_the_path(tmp_path):
    with pytest.raises(OSError, match="umount2") as error:
        umount2(tmp_path)
    assert error.value.errno == errno.EINVAL
    assert error.value.filename == str(tmp_path)


def test_pidfd():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    pidfd = pidfd_open(pid)
    try:
        ours = pidfd_getfd(pidfd, write)
        assert not os.get_inheritable(ours)
        os.write(ours, b"x")
        assert os.read(read, 1) == b"x"
        pidfd_send_signal(pidfd, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            pidfd_send_signal(pidfd, 0)
        with pytest.raises(OSError, match="pidfd_getfd"):
            pidfd_getfd(pidfd, write)
    finally:
        for fd in (pidfd, ours, read, write):
            os.close(fd)


def test_a_child_dies_with_its_parent():
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        ready, steady = os.pipe()
        if os.fork() == 0:
            namespaces.set_parent_death_signal(signal.SIGKILL)
            os.write(steady, b"1")
            signal.pause()  # holds `write` open
        os.read(ready, 1)
        os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b""  # comes only when the grandchild is gone
    os.close(read)
    os.waitpid(middle, 0)


def test_sets_are_dropped_and_taken():
    def work():
        drop_bounding(frozenset({"CHOWN", "KILL", "SETPCAP"}))
        set_own(frozenset({"CHOWN"}), frozenset({"CHOWN", "KILL"}), frozenset({"KILL"}))
        sets = sets_of()
        return [
            sorted(some) for some in (sets.bounding, sets.effective, sets.permitted, sets.inheritable, sets.ambient)
        ]

    assert in_child(work) == str([["CHOWN", "KILL", "SETPCAP"], ["CHOWN"], ["CHOWN", "KILL"], ["KILL"], []])


def test_what_is_not_permitted_cannot_be_taken():
    def work():
        set_own(frozenset(), frozenset(), frozenset())
        try:
            set_own(frozenset({"CHOWN"}), frozenset({"CHOWN"}), frozenset())
        except PermissionError as error:
            return error.strerror

    assert in_child(work) == "capset: Operation not permitted"
    assert names(0) == frozenset()
