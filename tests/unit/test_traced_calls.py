"""The catalogue of traced calls: it is what its own description says, and stops what it shall and nothing else."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from profiler.catalogue import calls
from profiler.catalogue.calls import CatalogueInvalid, catalogue, number_of, parse
from profiler.kernel.bpf import AUDIT_ARCH_I386, RET_ALLOW, RET_USER_NOTIF, assemble, interpret
from profiler.tracer.calls import SIGNATURES

PROGRAM = assemble(catalogue().rules(), foreign_numbers=catalogue().foreign_numbers())
MINUS_ONE = 0xFFFFFFFF
GARBAGE = 0xDEAD << 32  # what an int argument may have in the upper half of its register


def stops(name: str, *args: int) -> bool:
    number = number_of(name)
    assert number is not None
    answer = interpret(PROGRAM, number, (*args, *(0,) * (6 - len(args))))
    assert answer in (RET_USER_NOTIF, RET_ALLOW)
    matches = name in catalogue().calls and catalogue().calls[name].matches((*args, *(0,) * (6 - len(args))))
    assert matches == (answer == RET_USER_NOTIF), "the assembled filter and the catalogue disagree"
    return matches


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("mount", ()),
        ("openat", (0, 0, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)),
        ("openat", (0, 0, GARBAGE | os.O_RDWR)),
        ("openat", (0, 0, os.O_RDONLY | os.O_NOATIME)),
        ("open", (0, os.O_WRONLY)),
        ("chown", (0, 1000, MINUS_ONE)),
        ("chown", (0, MINUS_ONE, 5)),
        ("fchownat", (0, 0, 0, 7)),
        ("fchmodat", (0, 0, 0o4755)),
        ("mknodat", (0, 0, 0o60600)),
        ("mknod", (0, 0o20600)),
        ("socket", (16, 3, 0)),
        ("socket", (2, 3 | 0o2000000, 1)),
        ("socket", (10, 3, 58)),
        ("clone", (0x20000 | 17,)),
        ("prlimit64", (0, 7, 1 << 40)),
        ("timerfd_create", (9,)),
        ("ioctl", (3, 0x4C0A)),
        ("ioctl", (3, 0x8914)),
        ("ioctl", (3, 0x400454CA)),
        ("ioctl", (3, 0x40086602)),
        ("ioctl", (3, 0x40081272)),
        ("ioctl", (0, 0x540E, 1)),
        ("setsockopt", (3, 1, 36)),
        ("setsockopt", (3, 0, 64)),
        ("setsockopt", (3, 41, 200)),
        ("getsockopt", (3, 0, 64)),
        ("fcntl", (3, 4, 0o1000000)),
        ("ptrace", (0x4206, 5)),
        ("bpf", (5,)),
        ("mmap", (0, 4096, 3, 0x2022)),
        ("prctl", (24, 21)),
    ],
)
def test_what_can_need_a_privilege_stops(name: str, args: tuple[int, ...]) -> None:
    assert stops(name, *args)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("read", ()),
        ("write", ()),
        ("execve", ()),
        ("clone3", ()),
        ("openat", (0, 0, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)),
        ("openat", (0, 0, os.O_WRONLY | os.O_CREAT | os.O_EXCL)),
        ("openat", (0, 0, os.O_RDWR | os.O_TMPFILE)),
        ("chown", (0, 0, 0)),
        ("chown", (0, MINUS_ONE, MINUS_ONE)),
        ("chown", (0, 0xFFFFFFFFFFFFFFFF, 0)),
        ("fchmodat", (0, 0, 0o755)),
        ("mknod", (0, 0o10644)),
        ("socket", (1, 2)),
        ("socket", (2, 1 | 0o2004000, 6)),
        ("socket", (10, 2)),
        ("clone", (0x3D0F00,)),
        ("clone", (0x1200011,)),
        ("prlimit64", (0, 7, 0)),
        ("timerfd_create", (1,)),
        ("ioctl", (1, 0x5401)),
        ("ioctl", (1, 0x5413)),
        ("ioctl", (3, 0x80086601)),
        ("ioctl", (3, 0xC020660B)),  # FS_IOC_FIEMAP
        ("ioctl", (3, 0x40049409)),
        ("ioctl", (0, 0x540E, 0)),
        ("setsockopt", (3, 1, 2)),
        ("setsockopt", (3, 6, 1)),
        ("setsockopt", (3, 0, 1)),
        ("fcntl", (3, 4, 0o4000)),
        ("fcntl", (3, 2, 1)),
        ("ptrace", (7, 5)),
        ("bpf", (1,)),
        ("mmap", (0, 4096, 3, 0x22)),
        ("prctl", (15,)),
        ("sched_setaffinity", (0,)),
    ],
)
def test_what_ordinary_programs_do_all_the_time_does_not(name: str, args: tuple[int, ...]) -> None:
    assert not stops(name, *args)


def test_every_traced_call_has_a_decoder_of_its_own() -> None:
    assert catalogue().calls.keys() - SIGNATURES.keys() == {"lookup_dcookie"}  # removed in Linux 6.7


def test_every_constant_is_used() -> None:
    text = calls.data_file(calls.FILE).read_text(encoding="utf-8")
    table = tomllib.loads(text)["constants"]
    names = [name for key, value in table.items() for name in (value if isinstance(value, dict) else [key])]
    conditions = text[text.index("[[call]]") :]
    assert [name for name in names if f'"{name}"' not in conditions and f"{name}|" not in conditions
            and f"|{name}" not in conditions] == []  # fmt: skip


def test_extra_calls_lose_their_conditions() -> None:
    rules = {rule.number: rule for rule in catalogue().rules({"openat", "getppid", "no_such_call"})}
    assert rules[257].conditions == ()
    assert rules[110].conditions == ()
    assert len(rules) == len(catalogue().calls) + 1


def test_i386_calls_are_stopped_by_number_where_they_have_no_conditions() -> None:
    def answer(name: str) -> int:
        number = number_of(name, calls.FOREIGN)
        assert number is not None
        return interpret(PROGRAM, number, (0,) * 6, arch=AUDIT_ARCH_I386)

    assert answer("mount") == answer("setuid32") == answer("umount") == RET_USER_NOTIF
    assert answer("open") == answer("read") == answer("socketcall") == RET_ALLOW


def test_names_and_numbers() -> None:
    assert number_of("mount") == 165
    assert number_of("mount", calls.FOREIGN) == 21
    assert number_of("no_such_call") is None
    assert calls.name_of(165) == "mount"
    assert calls.name_of(9999) == "syscall_9999"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("][", "TOML"),
        ("other = 1", "other"),
        ('[[call]]\nnames = ["mount", "mount"]', "twice"),
        ('[[call]]\nnames = ["mmount"]', "mmount"),
        ('[[call]]\nnames = ["mount"]\nwhen = [[]]', "empty"),
        ('[[call]]\nnames = ["mount"]\nwhen = [[{arg = 1, op = "lt", value = 1}]]', "op"),
        ('[[call]]\nnames = ["mount"]\nwhen = [[{arg = 1, op = "in", value = 1}]]', "in"),
        ('[[call]]\nnames = ["mount"]\nwhen = [[{arg = 1, op = "eq", value = "NONE"}]]', "NONE"),
        ('[[call]]\nnames = ["mount"]\nwhen = [[{arg = 1, op = "eq", value = 4, mask = 3}]]', "mask"),
        ('[[call]]\nnames = ["mount"]\nwhen = [[{arg = 6, op = "eq", value = 4}]]', "6"),
        ('[[call]]\nnames = ["mount"]\nwhen = [[{op = "eq", value = 4}]]', "arg"),
        ('i386 = ["openat9"]', "openat9"),
    ],
)
def test_a_contradictory_catalogue_is_refused_by_name(text: str, word: str) -> None:
    with pytest.raises(CatalogueInvalid, match=word):
        parse(text)


def test_in_spells_out_every_combination() -> None:
    found = parse(
        """[constants]\nA = 1\nB = 2\n[[call]]\nnames = ["ioctl"]
        when = [[{arg = 1, op = "in", value = ["A", "A|B"]}, {arg = 2, op = "in", value = [7, 8]}]]"""
    ).calls["ioctl"]
    assert len(found.conditions) == 4
    assert found.matches((0, 3, 8, 0, 0, 0))
    assert not found.matches((0, 2, 8, 0, 0, 0))


def test_the_wheel_has_the_file_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "profiler"
    (package / "data" / "seccomp").mkdir(parents=True)
    (package / "data" / "seccomp" / "x.toml").touch()
    monkeypatch.setattr(calls, "_PACKAGE", package)
    assert calls.data_file("x.toml") == package / "data" / "seccomp" / "x.toml"
    with pytest.raises(FileNotFoundError, match=r"y\.toml"):
        calls.data_file("y.toml")
