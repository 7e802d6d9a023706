"""The gate's file, and the memory functions on a process that everyone has: a gate of one's own."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import time

import pytest

from profiler.errors import HostError
from profiler.kernel import gate, memory

SYSCALL = b"\x0f\x05"
needs_x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the gate is x86_64 code")


@pytest.fixture
def paused(tmp_path):
    """The pid of a gate that is a child of this test."""
    path = tmp_path / "gate"
    path.write_bytes(gate.gate_elf())
    path.chmod(0o555)
    pid = os.posix_spawn(path, ["gate"], {})
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@needs_x86_64
def test_it_is_small_and_its_addresses_are_right():
    elf = gate.gate_elf()
    assert elf[:4] == b"\x7fELF"
    assert len(elf) < 200
    entry = struct.unpack_from("<Q", elf, 24)[0]
    offset, address = struct.unpack_from("<QQ", elf, 64 + 8)  # of the first program header
    assert entry == gate.START_ADDRESS
    at = gate.SYSCALL_ADDRESS - address + offset
    assert elf[at : at + 2] == SYSCALL


@needs_x86_64
def test_its_segment_is_executable_and_not_writable():
    kind, flags = struct.unpack_from("<II", gate.gate_elf(), 64)
    assert (kind, flags) == (gate.PT_LOAD, gate.PF_R | gate.PF_X)


def test_another_architecture_is_refused(monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6", "1", "riscv64")))
    with pytest.raises(HostError, match="riscv64") as error:
        gate.gate_elf()
    assert error.value.hint


@needs_x86_64
def test_it_runs_and_is_recognised(paused):
    until(lambda: gate.is_at_gate(paused))
    assert not gate.is_at_gate(os.getpid())
    assert not gate.is_at_gate(2**22 + 1)


@needs_x86_64
def test_memory_ends_where_its_mapping_does(paused):
    until(lambda: gate.is_at_gate(paused))
    page = gate.SYSCALL_ADDRESS & -memory.PAGE
    end = page + memory.PAGE
    assert memory.read_bytes(paused, gate.SYSCALL_ADDRESS, 2) == SYSCALL
    assert len(memory.read_bytes(paused, end - 3, 100)) == 3
    assert memory.read_bytes(paused, end, 8) == b""
    assert memory.read_string(paused, 0) is None
    assert memory.read_string(paused, end) is None
    assert memory.read_string(paused, end - 3) == ""  # the file's end is padded with zeros
    with pytest.raises(OSError, match="Bad address"):
        memory.read_u64(paused, end - 4)


def test_strings_and_numbers_of_this_process():
    buffer = ctypes.create_string_buffer(b"caf\xe9/" + b"x" * 9000)
    address = ctypes.addressof(buffer)
    me = os.getpid()
    assert memory.read_string(me, address, 5) == "caf\udce9/"
    assert memory.read_string(me, address, 10_000) == "caf\udce9/" + "x" * 9000
    assert len(memory.read_string(me, address)) == 4096
    assert memory.read_bytes(me, address, 9006) == buffer.raw
    number = ctypes.c_uint64(0x1122334455667788)
    assert memory.read_u64(me, ctypes.addressof(number)) == 0x1122334455667788
    assert memory.read_u32(me, ctypes.addressof(number)) == 0x55667788
    memory.write_bytes(me, address, b"written")
    assert buffer.raw.startswith(b"writtenx")


def test_where_process_vm_readv_is_denied_the_file_is_read(monkeypatch):
    def denied(*_args):
        ctypes.set_errno(1)
        return -1

    monkeypatch.setattr(memory.libc, "process_vm_readv", denied)
    buffer = ctypes.create_string_buffer(b"hello")
    assert memory.read_string(os.getpid(), ctypes.addressof(buffer)) == "hello"
    assert memory.read_bytes(os.getpid(), 1, 4) == b""


def test_a_process_that_is_gone():
    with pytest.raises(ProcessLookupError):
        memory.read_bytes(2**22 + 1, 4096, 8)
