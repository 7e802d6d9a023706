"""Every path of a seccomp filter for one call number: what must hold of the arguments, and what is answered then.

A path's conditions are kept as one `Word` (a set of 32-bit values) for each half of an argument. Wherever a set cannot
be told to be empty it counts as not empty, and a condition that no `Word` can hold is left out and marks the path as
not exact: a path may therefore stand for more calls than really take it, never for fewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from profiler.kernel import bpf
from profiler.kernel.bpf import Instruction

MASK32 = 0xFFFFFFFF
MAX_PATHS = 4096
_EDGE_STEPS = 64  # how many single values are tried at either end of a set that excludes values


class TooManyPaths(ValueError):
    """A filter has more than `MAX_PATHS` paths for one call. libseccomp's have some dozens."""


@dataclass(frozen=True)
class Word:
    """32-bit values x with low <= x <= high, x & mask == value, and x & m != v for every excluded (m, v)."""

    low: int = 0
    high: int = MASK32
    mask: int = 0
    value: int = 0
    excluded: tuple[tuple[int, int], ...] = ()

    def meet(self, other: Word) -> Word | None:
        """The values of both; None when there is surely none."""
        if (self.value ^ other.value) & self.mask & other.mask:
            return None
        return _tidy(
            Word(
                max(self.low, other.low),
                min(self.high, other.high),
                self.mask | other.mask,
                self.value | other.value,
                tuple(dict.fromkeys(self.excluded + other.excluded)),
            )
        )


ANY = Word()


def equal(mask: int, value: int) -> Word | None:
    """x & mask == value. None when no word is."""
    return None if value & ~mask else _tidy(Word(mask=mask, value=value))


def unequal(mask: int, value: int) -> Word | None:
    """x & mask != value. None when no word is."""
    return ANY if value & ~mask else _tidy(Word(excluded=((mask, value),)))


def between(low: int, high: int) -> Word | None:
    """low <= x <= high. None when no word is."""
    return _tidy(Word(low=low, high=high)) if low <= high else None


def _tidy(word: Word) -> Word | None:
    """The same set with its bounds tightened; None when it is found to be empty."""
    mask, value = word.mask, word.value
    excluded = list(word.excluded)
    settled = False
    while not settled:
        settled = True
        for pair in tuple(excluded):
            m, v = pair
            if (value ^ v) & m & mask:  # what is known rules the excluded values out anyway
                excluded.remove(pair)
            elif (unknown := m & ~mask) == 0:
                return None
            elif unknown & (unknown - 1) == 0:  # one bit decides, so it is known
                excluded.remove(pair)
                mask, value, settled = mask | unknown, value | unknown & ~v, False
    low, high = _next(word.low, mask, value), _previous(word.high, mask, value)
    for _ in range(_EDGE_STEPS):
        if low is None or high is None or low > high:
            return None
        if any(low & m == v for m, v in excluded):
            low = _next(low + 1, mask, value)
        elif any(high & m == v for m, v in excluded):
            high = _previous(high - 1, mask, value)
        else:
            break
    if low is None or high is None or low > high:
        return None
    return Word(low, high, mask, value, tuple(sorted(excluded)))


def _next(low: int, mask: int, value: int) -> int | None:
    """The least x >= low with x & mask == value."""
    if low > MASK32 or low & mask == value:
        return low if low <= MASK32 else None
    for bit in range(32):  # x and low part at this bit: above it they are the same, below x is as small as it may be
        one = 1 << bit
        above = MASK32 & ~(2 * one - 1)
        if not low & one and (low ^ value) & mask & above == 0 and (value & one or not mask & one):
            return low & above | one | value & (one - 1)
    return None


def _previous(high: int, mask: int, value: int) -> int | None:
    """The greatest x <= high with x & mask == value."""
    mirrored = _next(MASK32 - high, mask, ~value & mask)
    return None if mirrored is None else MASK32 - mirrored


class Half(NamedTuple):
    """The low or high half of an argument."""

    arg: int
    high: bool

    @property
    def offset(self) -> int:
        """Where it is in `struct seccomp_data` of a little-endian machine."""
        return bpf.ARGS_OFFSET + 8 * self.arg + 4 * self.high


Box = Mapping[Half, Word]  # halves that are not named are free


def meet(one: Box, other: Box) -> Box | None:
    """The calls that are in both; None when there is surely none."""
    joined = dict(one)
    for half, word in other.items():
        both = word if half not in joined else joined[half].meet(word)
        if both is None:
            return None
        joined[half] = both
    return joined


@dataclass(frozen=True)
class Path:
    """One way through the filter. `examined` are the arguments that were loaded on it."""

    box: Box
    answer: int
    examined: frozenset[int]
    exact: bool = True


@dataclass(frozen=True)
class _Symbol:
    """A half of an argument, masked."""

    half: Half
    mask: int = MASK32


_Value = int | _Symbol | None  # None: something that we do not follow


@dataclass(frozen=True)
class _State:
    at: int
    a: _Value
    x: _Value
    memory: Mapping[int, _Value]
    box: Box
    examined: frozenset[int]
    exact: bool


def paths_of(program: Sequence[Instruction], number: int, arch: int = bpf.AUDIT_ARCH_X86_64) -> tuple[Path, ...]:
    """The feasible paths of a decoded filter for one number. Raises TooManyPaths; ValueError for what is no filter."""
    found: list[Path] = []
    waiting = [_State(0, 0, 0, dict.fromkeys(range(bpf.SCRATCH_WORDS), 0), {}, frozenset(), True)]
    while waiting:
        state = waiting.pop()
        if len(found) + len(waiting) >= MAX_PATHS:
            raise TooManyPaths(f"call {number} has more than {MAX_PATHS} paths")
        try:
            ended = _advance(program, state, number, arch, waiting)
        except (IndexError, KeyError) as error:
            raise ValueError("the program is none that seccomp allows") from error
        if ended is not None:
            found.append(ended)
    return tuple(reversed(found))


def _advance(
    program: Sequence[Instruction], state: _State, number: int, arch: int, waiting: list[_State]
) -> Path | None:
    """Follow one state to its end, or to where it splits: then what it splits into is appended to `waiting`."""
    at, a, x, examined = state.at, state.a, state.x, state.examined
    memory = dict(state.memory)
    while True:
        code, jt, jf, k = program[at]
        at += 1
        kind = code & 7
        if kind in {bpf.LD, bpf.LDX}:
            loaded: _Value
            if code & 0xE0 == bpf.ABS:
                loaded = _field(k, number, arch)
                if isinstance(loaded, _Symbol):
                    examined |= {loaded.half.arg}
            else:
                loaded = {bpf.IMM: k, bpf.LEN: bpf.SECCOMP_DATA.size}.get(code & 0xE0, memory.get(k))
            a, x = (loaded, x) if kind == bpf.LD else (a, loaded)
        elif kind in {bpf.ST, bpf.STX}:
            memory[k] = a if kind == bpf.ST else x
        elif kind == bpf.MISC:
            a, x = (a, a) if code & 0xF8 == bpf.TAX else (x, x)
        elif kind == bpf.RET:
            answer = a if code & 0x18 == bpf.A else k
            # An answer that depends on an argument kills here: the strictest that it can be.
            known = isinstance(answer, int)
            word = answer if isinstance(answer, int) else bpf.RET_KILL_PROCESS
            return Path(state.box, word, examined, state.exact and known)
        elif kind == bpf.ALU:
            operand = x if code & bpf.X else k
            if code & 0xF0 == bpf.DIV and operand == 0:
                return Path(state.box, 0, examined, state.exact)
            a = _alu(code & 0xF0, a, operand)
        elif code == bpf.JMP | bpf.JA:
            at += k
        else:
            operand = x if code & bpf.X else k
            if isinstance(a, int) and isinstance(operand, int):
                at += jt if bpf.compare(code & 0xF0, a, operand) else jf
                continue
            for taken, offset in ((True, jt), (False, jf)):
                narrowed = _narrow(code & 0xF0, a, operand, taken)
                box: Box | None = state.box
                if narrowed is not None:
                    half, fits = narrowed
                    box = None if fits is None else meet(state.box, {half: fits})
                if box is not None:
                    exact = state.exact and narrowed is not None
                    waiting.append(_State(at + offset, a, x, memory, box, examined, exact))
            return None


def _field(offset: int, number: int, arch: int) -> _Value:
    if offset == bpf.NR_OFFSET:
        return number & MASK32
    if offset == bpf.ARCH_OFFSET:
        return arch
    if offset < bpf.ARGS_OFFSET:
        return None  # the instruction pointer
    argument, rest = divmod(offset - bpf.ARGS_OFFSET, 8)
    if argument > 5 or rest % 4:
        raise IndexError(offset)
    return _Symbol(Half(argument, rest == 4))


def _alu(operation: int, a: _Value, operand: _Value) -> _Value:
    if operation == bpf.NEG:
        return -a & MASK32 if isinstance(a, int) else None
    if isinstance(a, int) and isinstance(operand, int):
        return bpf.arithmetic(operation, a, operand)
    if operation == bpf.AND:
        if isinstance(a, int):
            a, operand = operand, a
        if isinstance(a, _Symbol) and isinstance(operand, int):
            # libseccomp writes `and #0` for the unused half of a masked comparison
            return replace(a, mask=a.mask & operand) if a.mask & operand else 0
    return None


def _narrow(operation: int, a: _Value, operand: _Value, taken: bool) -> tuple[Half, Word | None] | None:
    """What a jump's outcome says of an argument (no word: it cannot come). None when no `Word` can hold that."""
    if not isinstance(a, _Symbol) or not isinstance(operand, int):
        return None
    word: Word | None
    if operation == bpf.JEQ:
        word = equal(a.mask, operand) if taken else unequal(a.mask, operand)
    elif operation == bpf.JSET:
        word = unequal(a.mask & operand, 0) if taken else equal(a.mask & operand, 0)
    elif a.mask != MASK32:
        return None
    else:
        least = operand + (operation == bpf.JGT)
        word = between(least, MASK32) if taken else between(0, least - 1)
    return a.half, word
