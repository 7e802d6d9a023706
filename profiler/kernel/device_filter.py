"""Limits the device nodes of a control group of the unified hierarchy, which has no `devices` controller files.

The rules become a program of type BPF_PROG_TYPE_CGROUP_DEVICE, attached to the group; it stays as long as the group.
Sources: bpf(2), linux/bpf.h, Documentation/admin-guide/cgroup-v2.rst (Device controller), cgroup_dev_func_proto
and __cgroup_bpf_check_dev_permission in kernel/bpf/cgroup.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from profiler.kernel.namespaces import libc, oserror

NR_BPF = {"x86_64": 321, "aarch64": 280}  # asm/unistd.h

# linux/bpf.h
BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2  # programs of the groups above stay in force
BPF_DEVCG_DEV = {"b": 1, "c": 2}
BPF_DEVCG_ACC = {"m": 1, "r": 2, "w": 4}
_ALL = 7

_INSN = struct.Struct("<BBhi")  # struct bpf_insn: code, registers (source << 4 | destination), offset, immediate
_LOAD = struct.Struct("<IIQQIIQII")  # union bpf_attr for BPF_PROG_LOAD, to prog_flags
_ATTACH = struct.Struct("<IIII")  # union bpf_attr for BPF_PROG_ATTACH, to attach_flags
_LDXW, _RSH32, _AND32, _JNE, _JNE_X, _MOV, _MOV_X, _EXIT = 0x61, 0x74, 0x54, 0x55, 0x5D, 0xB7, 0xBF, 0x95
_RULE = re.compile(r"([bc]) (\d+|\*):(\d+|\*) ([rwm]+)")


def program(rules: Iterable[str]) -> bytes:
    """The instructions that allow what one of `rules` names (`c 10:229 rw`, as devices.allow has them), nothing else.

    Raises ValueError for what is no rule.
    """
    # struct bpf_cgroup_dev_ctx: access_type (access << 16 | kind), major, minor
    code = [
        _INSN.pack(_LDXW, 0x12, 0, 0),
        _INSN.pack(_MOV_X, 0x23, 0, 0),
        _INSN.pack(_RSH32, 0x03, 0, 16),  # r3: the access that is asked for
        _INSN.pack(_AND32, 0x02, 0, 0xFFFF),  # r2: the kind
        _INSN.pack(_LDXW, 0x14, 4, 0),  # r4: the major number
        _INSN.pack(_LDXW, 0x15, 8, 0),  # r5: the minor number
    ]
    for rule in rules:
        code += _rule(rule)
    code += [_INSN.pack(_MOV, 0, 0, 0), _INSN.pack(_EXIT, 0, 0, 0)]
    return b"".join(code)


def _rule(rule: str) -> list[bytes]:
    """Return 1 when everything in `rule` holds, else go on behind these instructions."""
    match = _RULE.fullmatch(rule)
    if match is None:
        raise ValueError(f"no device rule: {rule!r}")
    kind, major, minor, letters = match.groups()
    tests = [(_JNE, 0x02, BPF_DEVCG_DEV[kind])]
    tests += [(_JNE, register, int(text)) for register, text in ((0x04, major), (0x05, minor)) if text != "*"]
    access = sum(BPF_DEVCG_ACC[letter] for letter in set(letters))
    if access != _ALL:
        tests += [(_MOV_X, 0x31, 0), (_AND32, 0x01, access), (_JNE_X, 0x31, 0)]
    left = len(tests)
    code = []
    for operation, registers, value in tests:
        left -= 1
        jump = left + 2 if operation in (_JNE, _JNE_X) else 0
        code.append(_INSN.pack(operation, registers, jump, value))
    return [*code, _INSN.pack(_MOV, 0, 0, 1), _INSN.pack(_EXIT, 0, 0, 0)]


def limit(group: Path, rules: Iterable[str]) -> None:
    """Limit the processes of the control group `group` (a directory of a cgroup2 mount) and of those below to `rules`.

    Raises OSError: EPERM without BPF or SYS_ADMIN, EINVAL or ENOSYS on a kernel without CONFIG_CGROUP_BPF.
    """
    code = ctypes.create_string_buffer(program(rules))
    license_name = ctypes.create_string_buffer(b"GPL")
    count = (len(code) - 1) // _INSN.size
    attr = _LOAD.pack(
        BPF_PROG_TYPE_CGROUP_DEVICE, count, ctypes.addressof(code), ctypes.addressof(license_name), 0, 0, 0, 0, 0
    )
    loaded = _bpf(BPF_PROG_LOAD, attr)
    try:
        directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _bpf(BPF_PROG_ATTACH, _ATTACH.pack(directory, loaded, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI))
        finally:
            os.close(directory)
    finally:
        os.close(loaded)


def _bpf(command: int, attr: bytes) -> int:
    number = NR_BPF.get(os.uname().machine)
    if number is None:
        raise oserror(f"bpf({command})", errno=errno.ENOSYS)
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = int(libc.syscall(number, command, ctypes.addressof(buffer), len(attr)))
    if result < 0:
        raise oserror(f"bpf({command})")
    return result
