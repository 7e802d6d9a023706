"""Classic BPF as seccomp runs it: assemble a filter from rules, interpret any filter, print one.

Nothing here asks the kernel for anything; the programs are arrays of `struct sock_filter` (linux/filter.h) over
`struct seccomp_data` (linux/seccomp.h). `paths.py` enumerates a program's paths, `filters.py` reads a process's.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

# linux/seccomp.h: the high half of a filter's answer is the action, the low half its data.
RET_KILL_PROCESS = 0x80000000
RET_KILL_THREAD = 0x00000000
RET_TRAP = 0x00030000
RET_ERRNO = 0x00050000
RET_USER_NOTIF = 0x7FC00000
RET_TRACE = 0x7FF00000
RET_LOG = 0x7FFC0000
RET_ALLOW = 0x7FFF0000
RET_ACTION_FULL = 0xFFFF0000
RET_DATA = 0x0000FFFF

# linux/audit.h
AUDIT_ARCH_X86_64 = 0xC000003E
AUDIT_ARCH_I386 = 0x40000003

X32_SYSCALL_BIT = 0x40000000  # asm/unistd.h: an x32 call has the x86_64 arch and this bit in its number

# linux/bpf_common.h
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
W = 0x00
IMM, ABS, MEM, LEN = 0x00, 0x20, 0x60, 0x80
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, XOR = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0xA0
JA, JEQ, JGT, JGE, JSET = 0x00, 0x10, 0x20, 0x30, 0x40
K, X, A = 0x00, 0x08, 0x10
TAX, TXA = 0x00, 0x80

# struct seccomp_data { int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6]; }
SECCOMP_DATA = struct.Struct("=IIQ6Q")
NR_OFFSET, ARCH_OFFSET, ARGS_OFFSET = 0, 4, 16
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
SCRATCH_WORDS = 16  # BPF_MEMWORDS
_SOCK_FILTER = struct.Struct("=HBBI")
_WORD = 0xFFFFFFFF


class Instruction(NamedTuple):
    """One `struct sock_filter`."""

    code: int
    jt: int
    jf: int
    k: int


def decode(program: bytes) -> tuple[Instruction, ...]:
    """The instructions of `program`. Raises ValueError when it is no whole, non-empty, allowed number of them."""
    if not program or len(program) % _SOCK_FILTER.size or len(program) > MAX_INSTRUCTIONS * _SOCK_FILTER.size:
        raise ValueError(f"{len(program)} bytes are not a classic BPF program")
    return tuple(Instruction(*fields) for fields in _SOCK_FILTER.iter_unpack(program))


def encode(instructions: Sequence[Instruction]) -> bytes:
    """The array of `struct sock_filter` that seccomp(2) takes. Raises ValueError when it is too long or empty."""
    if not 0 < len(instructions) <= MAX_INSTRUCTIONS:
        raise ValueError(f"a filter has 1 to {MAX_INSTRUCTIONS} instructions, this one has {len(instructions)}")
    return b"".join(_SOCK_FILTER.pack(*instruction) for instruction in instructions)


# --------------------------------------------------------------------------------------------------------------------
# Assembling


@dataclass(frozen=True)
class Compare:
    """`(args[arg] & mask) op value`, all 64 bits wide and unsigned."""

    arg: int
    op: Literal["eq", "ne"]
    value: int
    mask: int = 0xFFFFFFFFFFFFFFFF

    def __post_init__(self) -> None:
        if not 0 <= self.arg < 6:
            raise ValueError(f"a system call has arguments 0 to 5, not {self.arg}")

    def holds(self, args: Sequence[int]) -> bool:
        """Whether the arguments of a call meet it."""
        return ((args[self.arg] & self.mask) == self.value) == (self.op == "eq")


@dataclass(frozen=True)
class Rule:
    """A call by its x86_64 number, and when it matches: any of the conjunctions; always when there are none."""

    number: int
    conditions: tuple[tuple[Compare, ...], ...] = ()

    def holds(self, args: Sequence[int]) -> bool:
        """Whether a call of this number with these arguments matches."""
        return not self.conditions or any(all(c.holds(args) for c in conjunction) for conjunction in self.conditions)


@dataclass
class _Line:
    """An instruction whose jumps are still labels. Without labels execution goes on with the next line."""

    code: int
    k: int
    if_true: str | None = None
    if_false: str | None = None


@dataclass
class _Assembler:
    """Collects lines and labels, then resolves them. All jumps go forward, as BPF demands."""

    lines: list[_Line] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    fresh: int = 0

    def label(self) -> str:
        self.fresh += 1
        return f".{self.fresh}"

    def mark(self, label: str) -> None:
        self.labels[label] = len(self.lines)

    def emit(self, code: int, k: int) -> None:
        self.lines.append(_Line(code, k))

    def jump(self, operation: int, k: int, if_true: str | None, if_false: str | None) -> None:
        """A conditional jump; None means the next line."""
        self.lines.append(_Line(JMP | operation | K, k, if_true, if_false))

    def go(self, label: str) -> None:
        """An unconditional jump: its 32-bit offset reaches everywhere."""
        self.lines.append(_Line(JMP | JA, 0, label))

    def finish(self) -> bytes:
        """Resolve the labels. A conditional jump reaches 255 instructions: longer ones go through a JA behind it."""
        long_true: set[int] = set()
        long_false: set[int] = set()
        while True:
            sizes = [1 + (i in long_true) + (i in long_false) for i in range(len(self.lines))]
            starts = [0]
            for size in sizes:
                starts.append(starts[-1] + size)
            grown = False
            for i, line in enumerate(self.lines):
                if line.code == JMP | JA:
                    continue
                for target, long in ((line.if_true, long_true), (line.if_false, long_false)):
                    if target is not None and i not in long and starts[self.labels[target]] - starts[i] - 1 > 255:
                        long.add(i)
                        grown = True
            if not grown:
                return encode(self._place(starts, long_true, long_false))

    def _place(self, starts: list[int], long_true: set[int], long_false: set[int]) -> list[Instruction]:
        placed: list[Instruction] = []
        for i, line in enumerate(self.lines):
            if line.code & 7 != JMP:
                placed.append(Instruction(line.code, 0, 0, line.k))
                continue
            if line.code == JMP | JA and line.if_true is not None:
                placed.append(Instruction(line.code, 0, 0, starts[self.labels[line.if_true]] - starts[i] - 1))
                continue
            behind = starts[i + 1] - starts[i] - 1  # the number of JA that follow this jump
            jumps: list[Instruction] = []
            offsets: list[int] = []
            for target, long in ((line.if_true, long_true), (line.if_false, long_false)):
                if target is None:
                    offsets.append(behind)
                elif i in long:
                    here = starts[i] + 1 + len(jumps)
                    offsets.append(len(jumps))
                    jumps.append(Instruction(JMP | JA, 0, 0, starts[self.labels[target]] - here - 1))
                else:
                    offsets.append(starts[self.labels[target]] - starts[i] - 1)
            placed.append(Instruction(line.code, offsets[0], offsets[1], line.k))
            placed.extend(jumps)
        return placed


def assemble(
    rules: Sequence[Rule], *, action: int = RET_USER_NOTIF, foreign_numbers: frozenset[int] = frozenset()
) -> bytes:
    """A filter that answers `action` to the calls that match a rule and RET_ALLOW to everything else.

    `rules` are for AUDIT_ARCH_X86_64; several of one number are joined. `foreign_numbers` are i386 numbers, which match
    whatever their arguments. x32 calls and other architectures are allowed. Returns the packed array of
    `struct sock_filter`; raises ValueError when it exceeds 4096 instructions.

    The numbers are a search tree, and no argument is loaded before the number is found: for a number without a rule the
    kernel finds out at load time that the answer is always ALLOW (kernel/seccomp.c, seccomp_is_const_allow) and then
    does not run the filter at all. That function knows JEQ, JGE, JGT, JSET and AND with a constant: use no others here.
    """
    merged: dict[int, tuple[tuple[Compare, ...], ...]] = {}
    for rule in rules:
        if not 0 <= rule.number < X32_SYSCALL_BIT:
            raise ValueError(f"{rule.number} is no x86_64 system call number")
        known = merged.get(rule.number)
        # A rule without conditions always matches: it swallows its siblings.
        merged[rule.number] = (
            rule.conditions if known is None else known and rule.conditions and known + rule.conditions
        )
    out = _Assembler()
    out.emit(LD | W | ABS, ARCH_OFFSET)
    out.jump(JEQ, AUDIT_ARCH_X86_64, None, "foreign")
    out.emit(LD | W | ABS, NR_OFFSET)
    blocks = {number: out.label() if conditions else "act" for number, conditions in merged.items()}
    if blocks:
        out.jump(JGE, X32_SYSCALL_BIT, "allow", None)
    _search(out, sorted(blocks), blocks)
    for number, conditions in merged.items():
        if conditions:
            out.mark(blocks[number])
            _emit_conditions(out, conditions)
    out.mark("foreign")
    if foreign_numbers:
        out.jump(JEQ, AUDIT_ARCH_I386, None, "allow")
        out.emit(LD | W | ABS, NR_OFFSET)
        _search(out, sorted(foreign_numbers), dict.fromkeys(foreign_numbers, "act"))
    out.mark("allow")
    out.emit(RET | K, RET_ALLOW)
    out.mark("act")
    out.emit(RET | K, action)
    return out.finish()


def _search(out: _Assembler, numbers: Sequence[int], blocks: dict[int, str]) -> None:
    """Binary search: every way ends in a block or in `allow`."""
    if not numbers:
        out.emit(RET | K, RET_ALLOW)
        return
    if len(numbers) <= 2:
        for number in numbers[:-1]:
            out.jump(JEQ, number, blocks[number], None)
        out.jump(JEQ, numbers[-1], blocks[numbers[-1]], "allow")
        return
    middle = len(numbers) // 2
    upper = out.label()
    out.jump(JGE, numbers[middle], upper, None)
    _search(out, numbers[:middle], blocks)
    out.mark(upper)
    _search(out, numbers[middle:], blocks)


def _emit_conditions(out: _Assembler, conditions: tuple[tuple[Compare, ...], ...]) -> None:
    for conjunction in conditions:
        following = out.label()
        for compare in conjunction:
            _emit_compare(out, compare, following)
        out.go("act")
        out.mark(following)
    out.emit(RET | K, RET_ALLOW)


def _emit_compare(out: _Assembler, compare: Compare, otherwise: str) -> None:
    """Go on when it holds, else to `otherwise`: a 64-bit comparison as two of 32 bits, the low word first."""
    decided = out.label()
    for shift in (0, 32):
        mask, value = compare.mask >> shift & _WORD, compare.value >> shift & _WORD
        if mask == 0 and value == 0:
            continue  # this word is always equal
        out.emit(LD | W | ABS, ARGS_OFFSET + 8 * compare.arg + shift // 8)
        if mask != _WORD:
            out.emit(ALU | AND | K, mask)
        out.jump(JEQ, value, None, otherwise if compare.op == "eq" else decided)
    if compare.op == "ne":  # both words were equal
        out.go(otherwise)
    out.mark(decided)


# --------------------------------------------------------------------------------------------------------------------
# Interpreting

_ARITHMETIC: dict[int, tuple[str, Callable[[int, int], int]]] = {
    ADD: ("add", operator.add),
    SUB: ("sub", operator.sub),
    MUL: ("mul", operator.mul),
    DIV: ("div", operator.floordiv),
    OR: ("or", operator.or_),
    AND: ("and", operator.and_),
    LSH: ("lsh", lambda a, b: a << (b & 31)),  # kernel/bpf/core.c masks the shift of a 32-bit operation
    RSH: ("rsh", lambda a, b: a >> (b & 31)),
    XOR: ("xor", operator.xor),
}
_COMPARISONS: dict[int, tuple[str, Callable[[int, int], bool]]] = {
    JEQ: ("jeq", operator.eq),
    JGT: ("jgt", operator.gt),
    JGE: ("jge", operator.ge),
    JSET: ("jset", lambda a, b: bool(a & b)),
}


def arithmetic(operation: int, a: int, b: int) -> int:
    """The result of an ALU operation on 32-bit words; KeyError when seccomp knows no such operation.

    Division by zero is for the caller: it ends the program with the answer 0 (net/core/filter.c, bpf_convert_filter).
    """
    return _ARITHMETIC[operation][1](a, b) & _WORD


def compare(operation: int, a: int, b: int) -> bool:
    """The result of a conditional jump's comparison of unsigned words; KeyError when seccomp knows no such jump."""
    return _COMPARISONS[operation][1](a, b)


def interpret(program: bytes, number: int, args: Sequence[int], arch: int = AUDIT_ARCH_X86_64, ip: int = 0) -> int:
    """What `program` answers to a call: the whole word, action and data.

    `args` are up to six, taken modulo 2**64; missing ones are 0. Knows every instruction that the kernel's
    seccomp_check_filter allows; raises ValueError for any other and for a program that does not end in a RET.
    """
    words = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*args, 0, 0, 0, 0, 0, 0)[:6]]
    return run(decode(program), SECCOMP_DATA.pack(number & _WORD, arch, ip, *words))


def run(program: Sequence[Instruction], data: bytes) -> int:
    """What a decoded program answers to a packed `struct seccomp_data`. Raises ValueError as `interpret` does."""
    a = x = at = 0
    memory = [0] * SCRATCH_WORDS
    try:
        while True:
            code, jt, jf, k = program[at]
            at += 1
            kind = code & 7
            if kind == JMP:
                if code == JMP | JA:
                    at += k
                else:
                    at += jt if compare(code & 0xF0, a, x if code & X else k) else jf
            elif kind == LD:
                a = _load(code, k, memory, data)
            elif kind == RET:
                return a if code & 0x18 == A else k
            elif kind == ALU:
                if code & 0xF0 == NEG:
                    a = -a & _WORD
                    continue
                operand = x if code & X else k
                if code & 0xF0 == DIV and operand == 0:
                    return 0
                a = arithmetic(code & 0xF0, a, operand)
            elif kind == LDX:
                x = _load(code - LDX + LD, k, memory, data)
            elif kind == ST:
                memory[k] = a
            elif kind == STX:
                memory[k] = x
            elif code & 0xF8 == TAX:
                x = a
            else:
                a = x
    except (IndexError, KeyError) as error:
        raise ValueError(f"instruction {at - 1} is none that seccomp allows") from error


def _load(code: int, k: int, memory: Sequence[int], data: bytes) -> int:
    match code & 0xE0:
        case 0x20 if code == LD | W | ABS and k % 4 == 0 and k + 4 <= len(data):
            return int.from_bytes(data[k : k + 4], "little")  # both architectures that we read are little-endian
        case 0x00:
            return k
        case 0x60:
            return memory[k]
        case 0x80:
            return len(data)
    raise IndexError(k)


# --------------------------------------------------------------------------------------------------------------------
# Printing

_ACTIONS = {
    RET_KILL_PROCESS: "KILL_PROCESS",
    RET_KILL_THREAD: "KILL_THREAD",
    RET_TRAP: "TRAP",
    RET_ERRNO: "ERRNO",
    RET_USER_NOTIF: "USER_NOTIF",
    RET_TRACE: "TRACE",
    RET_LOG: "LOG",
    RET_ALLOW: "ALLOW",
}


def action_name(answer: int) -> str:
    """The name of an answer's action without `SECCOMP_RET_`. An unknown action kills, as the kernel does with it."""
    return _ACTIONS.get(answer & RET_ACTION_FULL, "KILL_PROCESS")


def disassemble(program: bytes) -> list[str]:
    """One line an instruction, jumps with absolute targets: `  4: jeq #0x38 7 5`. Raises ValueError as `decode`."""
    return [f"{at:4}: {_describe(at, *instruction)}" for at, instruction in enumerate(decode(program))]


def _describe(at: int, code: int, jt: int, jf: int, k: int) -> str:
    kind = code & 7
    operation = code & 0xF0
    operand = "x" if code & X else f"#{k:#x}"
    if code == JMP | JA:
        return f"ja {at + 1 + k}"
    if kind == JMP and operation in _COMPARISONS:
        return f"{_COMPARISONS[operation][0]} {operand} {at + 1 + jt} {at + 1 + jf}"
    if kind == ALU and operation in _ARITHMETIC:
        return f"{_ARITHMETIC[operation][0]} {operand}"
    if kind == ALU and operation == NEG:
        return "neg"
    if kind == RET:
        return "ret a" if code & 0x18 == A else f"ret {action_name(k)} {k & RET_DATA}"
    if kind in {LD, LDX}:
        source = {ABS: _field(k), IMM: f"#{k:#x}", MEM: f"M[{k}]", LEN: "#len"}.get(code & 0xE0)
        if source is not None:
            return f"{'ld' if kind == LD else 'ldx'} {source}"
    if kind in {ST, STX}:
        return f"{'st' if kind == ST else 'stx'} M[{k}]"
    if kind == MISC:
        return "tax" if code & 0xF8 == TAX else "txa"
    return f".word {code:#x} {jt} {jf} {k:#x}"


def _field(offset: int) -> str:
    """The name of a word of `struct seccomp_data`."""
    if offset < ARGS_OFFSET:
        return {NR_OFFSET: "nr", ARCH_OFFSET: "arch", 8: "ip.low", 12: "ip.high"}.get(offset, f"[{offset}]")
    argument, rest = divmod(offset - ARGS_OFFSET, 8)
    return f"args[{argument}].{'low' if rest == 0 else 'high'}"
