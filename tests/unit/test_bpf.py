"""The assembler against a direct evaluation of its rules; the interpreter instruction by instruction."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.kernel import bpf
from profiler.kernel.bpf import Compare, Instruction, Rule, assemble, decode, disassemble, encode, interpret

WORDS = [0, 1, 0x10000, 0xFFFFFFFF, 0x100000000, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 0x7E020000]
words = st.one_of(st.sampled_from(WORDS), st.integers(0, 2**64 - 1))
compares = st.builds(
    Compare, st.integers(0, 5), st.sampled_from(["eq", "ne"]), words, st.one_of(st.just(2**64 - 1), words)
)
conditions = st.lists(st.lists(compares, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple)
rules = st.lists(st.builds(Rule, st.integers(0, 460), conditions), max_size=40)


@settings(deadline=None)
@given(
    rules, st.frozensets(st.integers(0, 460), max_size=8), st.integers(0, 460), st.lists(words, min_size=6, max_size=6)
)
def test_assembled_rules_answer_as_their_direct_evaluation(rules, foreign, number, args):
    program = assemble(rules, foreign_numbers=foreign)
    for candidate in {number, *(rule.number for rule in rules)}:
        matches = any(rule.number == candidate and rule.holds(args) for rule in rules)
        expected = bpf.RET_USER_NOTIF if matches else bpf.RET_ALLOW
        assert interpret(program, candidate, args) == expected
        assert interpret(program, candidate | bpf.X32_SYSCALL_BIT, args) == bpf.RET_ALLOW
        expected = bpf.RET_USER_NOTIF if candidate in foreign else bpf.RET_ALLOW
        assert interpret(program, candidate, args, arch=bpf.AUDIT_ARCH_I386) == expected
        assert interpret(program, candidate, args, arch=0xC00000B7) == bpf.RET_ALLOW


@settings(deadline=None)
@given(st.integers(0, 5), words, words)
def test_a_value_is_met_by_itself_and_missed_by_its_neighbours(arg, value, mask):
    program = assemble([Rule(1, ((Compare(arg, "eq", value & mask, mask),),))], action=bpf.RET_ERRNO | 1)
    args = [0] * 6
    args[arg] = value
    assert interpret(program, 1, args) == bpf.RET_ERRNO | 1
    for bit in (1 << n for n in range(64) if mask >> n & 1):
        args[arg] = value ^ bit
        assert interpret(program, 1, args) == bpf.RET_ALLOW


def test_long_jumps_reach_over_255_instructions():
    value = tuple((Compare(0, "eq", n),) for n in range(60))
    rules = [Rule(number, value) for number in range(10)]
    program = assemble(rules)
    assert len(decode(program)) > 2000
    assert interpret(program, 9, [59]) == bpf.RET_USER_NOTIF
    assert interpret(program, 9, [60]) == bpf.RET_ALLOW
    assert interpret(program, 0, [0]) == bpf.RET_USER_NOTIF
    assert interpret(program, 10, [0]) == bpf.RET_ALLOW


def test_too_long_a_filter_is_refused():
    with pytest.raises(ValueError, match="4096"):
        assemble([Rule(number, tuple((Compare(0, "eq", n),) for n in range(60))) for number in range(40)])


def test_no_argument_is_loaded_before_the_number_is_found():
    program = decode(assemble([Rule(n, ((Compare(0, "eq", 1),),)) for n in range(0, 400, 5)]))
    for number in range(1, 400):
        if number % 5:
            data = bpf.SECCOMP_DATA.pack(number, bpf.AUDIT_ARCH_X86_64, 0, *[0] * 6)[:8]  # no arguments to load at all
            assert bpf.run(program, data) == bpf.RET_ALLOW


def test_a_number_is_found_in_few_steps():
    program = decode(assemble([Rule(n) for n in range(0, 400, 5)]))
    at, steps = 0, 0
    while program[at].code & 7 != bpf.RET:
        code, jt, jf, k = program[at]
        a = {bpf.NR_OFFSET: 1, bpf.ARCH_OFFSET: bpf.AUDIT_ARCH_X86_64}[k] if code & 7 == bpf.LD else a  # noqa: F821
        at += 1 + (0 if code & 7 == bpf.LD else jt if bpf.compare(code & 0xF0, a, k) else jf)
        steps += 1
    assert steps <= 12


def test_a_rule_without_conditions_swallows_its_siblings():
    conditional = Rule(5, ((Compare(0, "eq", 1),),))
    for rules in ([conditional, Rule(5)], [Rule(5), conditional]):
        assert interpret(assemble(rules), 5, [2]) == bpf.RET_USER_NOTIF


def answer(*instructions: tuple[int, int, int, int]) -> int:
    return interpret(encode([Instruction(*i) for i in instructions]), 7, [0x1122334455667788, 2])


RET_A = (bpf.RET | bpf.A, 0, 0, 0)
IMMEDIATE_12 = (bpf.LD | bpf.IMM, 0, 0, 12)


@pytest.mark.parametrize(
    ("operation", "operand", "expected"),
    [
        (bpf.ADD, 0xFFFFFFFF, 11),
        (bpf.SUB, 13, 0xFFFFFFFF),
        (bpf.MUL, 0x80000001, 12),
        (bpf.DIV, 5, 2),
        (bpf.DIV, 0, 0),
        (bpf.OR, 3, 15),
        (bpf.AND, 8, 8),
        (bpf.XOR, 4, 8),
        (bpf.LSH, 28, 0xC0000000),
        (bpf.RSH, 2, 3),
    ],
)
def test_arithmetic_with_a_constant_and_with_x(operation, operand, expected):
    assert answer(IMMEDIATE_12, (bpf.ALU | operation | bpf.K, 0, 0, operand), RET_A) == expected
    assert (
        answer((bpf.LDX | bpf.IMM, 0, 0, operand), IMMEDIATE_12, (bpf.ALU | operation | bpf.X, 0, 0, 0), RET_A)
        == expected
    )


def test_loads_stores_and_moves():
    assert answer((bpf.LD | bpf.ABS, 0, 0, 16), RET_A) == 0x55667788
    assert answer((bpf.LD | bpf.ABS, 0, 0, 20), RET_A) == 0x11223344
    assert answer((bpf.LD | bpf.ABS, 0, 0, 0), RET_A) == 7
    assert answer((bpf.LD | bpf.LEN, 0, 0, 0), RET_A) == 64
    assert answer((bpf.LDX | bpf.LEN, 0, 0, 0), (bpf.MISC | bpf.TXA, 0, 0, 0), RET_A) == 64
    store = (bpf.ST, 0, 0, 15)
    assert answer(IMMEDIATE_12, store, (bpf.LD | bpf.IMM, 0, 0, 1), (bpf.LD | bpf.MEM, 0, 0, 15), RET_A) == 12
    assert (
        answer(IMMEDIATE_12, (bpf.MISC | bpf.TAX, 0, 0, 0), (bpf.STX, 0, 0, 3), (bpf.LD | bpf.MEM, 0, 0, 3), RET_A)
        == 12
    )
    assert answer(IMMEDIATE_12, store, (bpf.LDX | bpf.MEM, 0, 0, 15), (bpf.MISC | bpf.TXA, 0, 0, 0), RET_A) == 12
    assert answer(IMMEDIATE_12, (bpf.ALU | bpf.NEG, 0, 0, 0), RET_A) == 0xFFFFFFF4


@pytest.mark.parametrize(
    ("operation", "k", "taken"),
    [(bpf.JEQ, 12, True), (bpf.JGT, 12, False), (bpf.JGE, 12, True), (bpf.JSET, 3, False), (bpf.JSET, 4, True)],
)
def test_jumps(operation, k, taken):
    ends = ((bpf.RET, 0, 0, 0), (bpf.RET, 0, 0, 1))
    assert answer(IMMEDIATE_12, (bpf.JMP | operation, 1, 0, k), *ends) == taken
    assert answer((bpf.LDX | bpf.IMM, 0, 0, k), IMMEDIATE_12, (bpf.JMP | operation | bpf.X, 1, 0, 0), *ends) == taken
    assert answer((bpf.JMP | bpf.JA, 0, 0, 1), *ends) == 1


@pytest.mark.parametrize(
    "instruction",
    [
        (bpf.LD | bpf.ABS, 0, 0, 64),
        (bpf.LD | bpf.ABS, 0, 0, 2),
        (bpf.LD | 0x40, 0, 0, 0),
        (bpf.ALU | 0x90, 0, 0, 1),
        (bpf.ST, 0, 0, 16),
        (bpf.LD | bpf.IMM, 0, 0, 0),
    ],
)
def test_what_the_kernel_refuses_is_a_value_error(instruction):
    with pytest.raises(ValueError, match="instruction"):
        answer(instruction)


def test_bytes_that_are_no_program_are_a_value_error():
    for program in (b"", b"1234567", b"\0" * 8 * 4097):
        with pytest.raises(ValueError, match="not a classic BPF program"):
            decode(program)


def test_disassembly_names_fields_and_targets():
    lines = disassemble(assemble([Rule(56, ((Compare(0, "ne", 1, 0x7E020000),),))]))
    assert lines[0] == "   0: ld arch"
    assert any("ld args[0].low" in line for line in lines)
    assert any("and #0x7e020000" in line for line in lines)
    assert any("ret USER_NOTIF 0" in line for line in lines)
    assert len(disassemble(encode([Instruction(0xFF, 1, 2, 3)]))) == 1
