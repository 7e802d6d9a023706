"""An engine's filter: what it answers, what it looks at, and the profile that it is turned back into."""

from __future__ import annotations

import errno
import itertools
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.kernel import bpf
from profiler.kernel.bpf import Compare, Instruction, Rule, assemble
from profiler.kernel.paths import MASK32, Half, Word, between, equal, paths_of, unequal
from profiler.model import AllowList, Process, RawCall
from profiler.witness.comparisons import Comparison, boxes_of, express
from profiler.witness.filter import Answer, EngineFilter, missing_calls, numbers, profile_with, rebuild

SCHEMA = json.loads((Path(__file__).parents[2] / "seccomp" / "profile.schema.json").read_text())
EPERM = bpf.RET_ERRNO | errno.EPERM
WORDS = [0, 1, 8, 0x20000, 0x7E020000, 0xFFFFFFFF, 1 << 32, (1 << 32) + 8, 1 << 63, (1 << 64) - 1]
words = st.one_of(st.sampled_from(WORDS), st.integers(0, 2**64 - 1))


def evaluate(profile: dict, name: str, args: list[int]) -> Answer:
    """What libseccomp makes of a profile for one call of x86_64."""
    for entry in profile["syscalls"]:
        comparisons = [Comparison(a["index"], a["op"], a["value"], a["valueTwo"]) for a in entry.get("args", ())]
        if name in entry["names"] and all(comparison.holds(args) for comparison in comparisons):
            return Answer(entry["action"].removeprefix("SCMP_ACT_"), entry.get("errnoRet"))
    return Answer(profile["defaultAction"].removeprefix("SCMP_ACT_"), profile["defaultErrnoRet"])


def vectors(program: bytes, examined: frozenset[int]) -> list[list[int]]:
    """Arguments around every constant of a filter."""
    constants = {k for _, _, _, k in bpf.decode(program)} & {*range(1 << 17), *WORDS, 0x20008, 0x7E020000}
    near = {0, (1 << 64) - 1, 1 << 32, *WORDS}
    near |= {value + delta & (1 << 64) - 1 for value in constants if value < 64 or value > 1000 for delta in (-1, 0, 1)}
    return [[v if i in examined else 0 for i in range(6)] for v in sorted(near)]


def deny_list(rules: list[Rule]) -> bytes:
    return assemble(rules, action=EPERM)


def allow_list(rules: list[Rule]) -> bytes:
    """Allowed are exactly the calls that match: the assembler's two last instructions change places."""
    program = list(bpf.decode(assemble(rules, action=bpf.RET_ALLOW)))
    swap = {bpf.RET_ALLOW: EPERM}
    last = len(program) - 1
    return bpf.encode(
        [i if i.code & 7 != bpf.RET or at == last else i._replace(k=swap[i.k]) for at, i in enumerate(program)]
    )


CLONE, PERSONALITY, KEYCTL, SOCKET = 56, 135, 250, 41
DOCKERLIKE = allow_list(
    [
        Rule(0),
        Rule(231),
        Rule(CLONE, ((Compare(0, "eq", 0, 0x7E020000),),)),
        Rule(PERSONALITY, tuple((Compare(0, "eq", v),) for v in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF))),
        Rule(SOCKET, ((Compare(0, "ne", 40),),)),
    ]
)


def test_answers():
    engine = EngineFilter(DOCKERLIKE)
    assert engine.answer(CLONE, [0x11]) == Answer("ALLOW")
    assert engine.answer(CLONE, [0x10000000]) == Answer("ERRNO", errno.EPERM)
    assert engine.allows(0)
    assert not engine.allows(KEYCTL)
    assert str(engine.answer(KEYCTL)) == "EPERM"
    assert Answer.of(bpf.RET_ERRNO | errno.ENOSYS).probe_fallback
    assert not Answer.of(EPERM).probe_fallback
    assert Answer.of(bpf.RET_LOG).allowed
    assert Answer.of(bpf.RET_TRAP) == Answer("TRAP")
    assert Answer.of(0x12345678) == Answer("KILL_PROCESS")


def test_examined_arguments_and_calls_ever_denied():
    engine = EngineFilter(DOCKERLIKE)
    assert engine.examined_args(CLONE) == {0}
    assert engine.examined_args(0) == frozenset()
    denied = engine.ever_denied()
    assert {"clone", "personality", "socket", "keyctl", "unshare"} <= denied
    assert not {"read", "exit_group"} & denied


def test_missing_calls_are_those_that_matter():
    process = Process(1, "/bin/x")

    def call(name: str, *args: int, result: int | None = 0) -> RawCall:
        padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
        return RawCall(name, numbers("x86_64")[name], padded, process, result)

    missing = [
        call("clone", 0x10000000),
        call("keyctl"),
        call("keyctl", result=-errno.ENOKEY),
    ]
    fine = [call("clone", 0x11), call("read"), call("keyctl", result=-errno.EPERM)]
    assert missing_calls(EngineFilter(DOCKERLIKE), [*missing, *fine]) == tuple(missing)
    enosys = assemble([Rule(numbers("x86_64")[n]) for n in ("clone3", "openat2")], action=bpf.RET_ERRNO | errno.ENOSYS)
    assert missing_calls(EngineFilter(enosys), [call("clone3"), call("openat2")]) == (call("openat2"),)


def test_the_rebuilt_profile_is_what_one_would_write():
    rebuilt = rebuild(DOCKERLIKE, frozenset({"keyctl"}))
    assert rebuilt.stricter == ()
    jsonschema.validate(rebuilt.profile, SCHEMA)
    assert rebuilt.profile["architectures"] == ["SCMP_ARCH_X86_64"]
    assert {"names": ["exit_group", "keyctl", "read"], "action": "SCMP_ACT_ALLOW"} in rebuilt.profile["syscalls"]
    arguments = {
        (entry["names"][0], c["op"], c["value"], c["valueTwo"])
        for entry in rebuilt.profile["syscalls"]
        for c in entry.get("args", ())
    }
    assert arguments == {
        ("clone", "SCMP_CMP_MASKED_EQ", 0x7E020000, 0),
        ("socket", "SCMP_CMP_NE", 40, 0),
        *(("personality", "SCMP_CMP_EQ", v, 0) for v in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)),
    }


ONLY = frozenset({"read", "clone", "keyctl", "unshare"})


def test_a_narrowed_profile_allows_less_and_never_more():
    whole = profile_with(DOCKERLIKE, frozenset({"keyctl"}))
    narrow = rebuild(DOCKERLIKE, frozenset({"keyctl"}), AllowList(tuple(ONLY)))
    jsonschema.validate(narrow.profile, SCHEMA)
    for name in ("read", "exit_group", "clone", "personality", "socket", "keyctl", "unshare", "mount"):
        for value in (0, 8, 0x11, 0x10000000):
            before, after = (evaluate(profile, name, [value, 0, 0, 0, 0, 0]) for profile in (whole, narrow.profile))
            assert after == (before if name in ONLY else Answer("ERRNO", errno.EPERM)), (name, value)
    assert {name for entry in narrow.profile["syscalls"] for name in entry["names"]} == {"read", "clone", "keyctl"}


def test_a_narrowed_profile_keeps_other_answers_and_no_other_architecture():
    program = assemble([Rule(435)], action=bpf.RET_ERRNO | errno.ENOSYS, foreign_numbers=frozenset({1}))
    assert len(profile_with(program, frozenset())["architectures"]) > 1
    narrow = profile_with(program, frozenset({"openat"}), AllowList(tuple(ONLY)))
    assert narrow["architectures"] == ["SCMP_ARCH_X86_64"]
    assert evaluate(narrow, "clone3", [0]) == Answer("ERRNO", errno.ENOSYS)  # libc falls back on it
    assert evaluate(narrow, "openat", [0]).allowed  # what is opened counts as observed
    assert not evaluate(narrow, "write", [0]).allowed
    assert EngineFilter(program).ever_allowed() == numbers("x86_64").keys() - {"clone3"}


def test_a_narrowed_profile_serves_32_bit_programs_where_they_were_seen():
    denied = frozenset({numbers("i386")["umount"]})
    program = assemble([Rule(435)], action=bpf.RET_ERRNO | errno.ENOSYS, foreign_numbers=denied)
    narrow = profile_with(program, frozenset(), AllowList(("read", "mmap2", "umount"), True))
    jsonschema.validate(narrow, SCHEMA)
    assert narrow["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    entries = [entry for entry in narrow["syscalls"] if entry["action"] == "SCMP_ACT_ALLOW"]
    assert {name for entry in entries for name in entry["names"]} == {"read", "mmap2"}  # the filter denies umount
    assert EngineFilter(program).ever_allowed(bpf.AUDIT_ARCH_I386) == numbers("i386").keys() - {"umount"}


def agrees(program: bytes, calls: frozenset[str], arguments: list[list[int]] | None = None) -> bool:
    engine, rebuilt = EngineFilter(program), rebuild(program, calls)
    same = True
    for name, number in numbers("x86_64").items():
        examined = engine.examined_args(number)
        for args in arguments or (vectors(program, examined) if examined else [[0] * 6]):
            original, ours = engine.answer(number, args), evaluate(rebuilt.profile, name, args)
            if name in calls:
                assert ours == Answer("ALLOW")
            else:
                assert original.allowed or not ours.allowed, (name, args)  # never looser
                same &= original == ours
    return same or bool(rebuilt.stricter)


def test_the_rebuilt_profile_decides_as_the_filter():
    assert agrees(DOCKERLIKE, frozenset({"keyctl", "unshare"}))


compares = st.builds(
    Compare,
    st.integers(0, 2),
    st.sampled_from(["eq", "ne"]),
    words,
    st.sampled_from([2**64 - 1, 0x7E020000, 1 << 40, 0xFFFFFFFF]),
)
conditions = st.lists(st.lists(compares, min_size=1, max_size=2).map(tuple), min_size=1, max_size=3).map(tuple)


@settings(deadline=None)
@given(conditions, st.booleans())
def test_any_rule_is_rebuilt_exactly_or_more_strictly(condition, deny):
    program = (deny_list if deny else allow_list)([Rule(CLONE, condition), Rule(231)])
    engine, rebuilt = EngineFilter(program), rebuild(program, frozenset())
    constants = sorted(
        {0, 2**64 - 1, *(c.value ^ flip for conjunction in condition for c in conjunction for flip in (0, 1, 1 << 25))}
    )
    for args in itertools.product(constants[:9], repeat=3):
        vector = [*args, 0, 0, 0]
        original, ours = engine.answer(CLONE, vector), evaluate(rebuilt.profile, "clone", vector)
        assert original.allowed or not ours.allowed
        assert original == ours or rebuilt.stricter


def split(operation: int, value: int) -> bytes:
    """An ordered comparison of args[1] as libseccomp generates it: high words first."""
    high, low = value >> 32, value & MASK32
    return bpf.encode(
        [
            Instruction(bpf.LD | bpf.ABS, 0, 0, 4),
            Instruction(bpf.JMP | bpf.JEQ, 0, 7, bpf.AUDIT_ARCH_X86_64),
            Instruction(bpf.LD | bpf.ABS, 0, 0, 0),
            Instruction(bpf.JMP | bpf.JEQ, 0, 5, 0),
            Instruction(bpf.LD | bpf.ABS, 0, 0, 28),
            Instruction(bpf.JMP | bpf.JGT, 4, 0, high),
            Instruction(bpf.JMP | bpf.JEQ, 0, 2, high),
            Instruction(bpf.LD | bpf.ABS, 0, 0, 24),
            Instruction(bpf.JMP | operation, 1, 0, low),
            Instruction(bpf.RET, 0, 0, EPERM),
            Instruction(bpf.RET, 0, 0, bpf.RET_ALLOW),
        ]
    )


@pytest.mark.parametrize(("operation", "op"), [(bpf.JGT, "SCMP_CMP_GT"), (bpf.JGE, "SCMP_CMP_GE")])
def test_halves_of_an_ordered_comparison_are_put_together(operation, op):
    value = 0x500000007
    rebuilt = rebuild(split(operation, value), frozenset())
    assert rebuilt.stricter == ()
    (entry,) = rebuilt.profile["syscalls"]
    (argument,) = entry["args"]
    comparison = Comparison(1, argument["op"], argument["value"])
    for candidate in (0, 7, 8, value - 1, value, value + 1, 6 << 32, 4 << 32 | MASK32, 2**64 - 1):
        expected = Comparison(1, op, value).holds([0, candidate])
        assert comparison.holds([0, candidate]) == expected
        assert EngineFilter(split(operation, value)).allows(0, [0, candidate]) == expected


def test_what_no_comparison_says_is_denied_and_named():
    parity = bpf.encode(  # allowed when args[0] shifted by one is 3: no profile can say that
        [
            Instruction(bpf.LD | bpf.ABS, 0, 0, 16),
            Instruction(bpf.ALU | bpf.RSH, 0, 0, 1),
            Instruction(bpf.JMP | bpf.JEQ, 0, 1, 3),
            Instruction(bpf.RET, 0, 0, bpf.RET_ALLOW),
            Instruction(bpf.RET, 0, 0, EPERM),
        ]
    )
    rebuilt = rebuild(parity, frozenset({"read"}))
    assert any(line.startswith("write is answered EPERM where the filter answers ALLOW") for line in rebuilt.stricter)
    assert rebuilt.profile["syscalls"] == [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]
    assert EngineFilter(parity).examined_args(1) == {0}


def test_a_notifying_answer_is_denied():
    program = assemble([Rule(0)], action=bpf.RET_USER_NOTIF)
    profile = profile_with(program, frozenset())
    assert not evaluate(profile, "read", [0] * 6).allowed
    assert evaluate(profile, "write", [0] * 6).allowed


def test_a_deny_list_does_not_allow_unknown_calls():
    profile = profile_with(deny_list([Rule(0)]), frozenset())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert not evaluate(profile, "read", [0] * 6).allowed


word_sets = st.lists(
    st.one_of(
        st.builds(equal, st.integers(0, 15), st.integers(0, 15)),
        st.builds(unequal, st.integers(0, 15), st.integers(0, 15)),
        st.builds(between, st.integers(0, 15), st.integers(0, 15)),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(word_sets)
def test_a_word_holds_its_values_and_is_known_to_be_empty_when_small(parts):
    made = Word(high=15)
    for part in parts:
        joined = None if part is None or made is None else made.meet(part)
        made = joined
    expected = [x for x in range(16) if all(part is not None and x in members(part) for part in parts)]
    assert (members(made) if made is not None else []) == expected


def members(word: Word) -> list[int]:
    return [
        x
        for x in range(16)
        if word.low <= x <= word.high and x & word.mask == word.value and all(x & m != v for m, v in word.excluded)
    ]


@settings(deadline=None)
@given(st.sampled_from(["EQ", "NE", "LT", "LE", "GT", "GE"]), words, words)
def test_boxes_hold_what_meets_a_comparison(op, value, argument):
    comparison = Comparison(0, f"SCMP_CMP_{op}", value)
    inside = any(contains(box, argument) for box in boxes_of((comparison,)))
    outside = any(contains(box, argument) for box in comparison.boxes_without())
    assert inside == comparison.holds([argument])
    assert outside == (not inside)


def contains(box, argument: int) -> bool:
    halves = {Half(0, False): argument & MASK32, Half(0, True): argument >> 32}
    return all(word.meet(equal(MASK32, halves[half])) is not None for half, word in box.items())


def test_paths_follow_memory_and_x():
    program = [
        Instruction(bpf.LD | bpf.ABS, 0, 0, 16),
        Instruction(bpf.ST, 0, 0, 3),
        Instruction(bpf.LD | bpf.IMM, 0, 0, 9),
        Instruction(bpf.MISC | bpf.TAX, 0, 0, 0),
        Instruction(bpf.LD | bpf.MEM, 0, 0, 3),
        Instruction(bpf.JMP | bpf.JEQ | bpf.X, 0, 1, 0),
        Instruction(bpf.RET, 0, 0, bpf.RET_ALLOW),
        Instruction(bpf.RET, 0, 0, EPERM),
    ]
    paths = paths_of(program, 1)
    (allowed,) = (path for path in paths if path.answer == bpf.RET_ALLOW)
    assert allowed.exact
    others = [path for path in paths if path is not allowed]
    assert express(allowed, others) == (Comparison(0, "SCMP_CMP_MASKED_EQ", MASK32, 9),)  # the high half is free
    assert allowed.box == {Half(0, False): equal(MASK32, 9)}
