"""libseccomp's argument comparisons, as a profile's `args` have them, and which of them say what a filter's path says.

A profile's rule is a conjunction of comparisons, at most one for an argument: engines turn two of one argument into
two rules, which means *or* (runc, libcontainer/seccomp/seccomp_linux.go, matchCall).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from profiler.kernel.paths import MASK32, Box, Half, Path, Word, between, equal, meet, unequal

_MAX_TRIES = 5000  # combinations of comparisons tried for one path; engines' filters need some dozens

_OPERATORS: dict[str, Callable[[int, int], bool]] = {
    "SCMP_CMP_EQ": lambda a, b: a == b,
    "SCMP_CMP_NE": lambda a, b: a != b,
    "SCMP_CMP_LT": lambda a, b: a < b,
    "SCMP_CMP_LE": lambda a, b: a <= b,
    "SCMP_CMP_GT": lambda a, b: a > b,
    "SCMP_CMP_GE": lambda a, b: a >= b,
}
_OPPOSITE = {
    "SCMP_CMP_EQ": "SCMP_CMP_NE",
    "SCMP_CMP_NE": "SCMP_CMP_EQ",
    "SCMP_CMP_LT": "SCMP_CMP_GE",
    "SCMP_CMP_GE": "SCMP_CMP_LT",
    "SCMP_CMP_GT": "SCMP_CMP_LE",
    "SCMP_CMP_LE": "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ": "not SCMP_CMP_MASKED_EQ",
}


@dataclass(frozen=True, order=True)
class Comparison:
    """`args[index] op value`; for SCMP_CMP_MASKED_EQ `(args[index] & value) == value_two`. 64 bits, unsigned."""

    index: int
    op: str
    value: int
    value_two: int = 0

    def holds(self, args: Sequence[int]) -> bool:
        """Whether the arguments of a call meet it."""
        if self.op == "SCMP_CMP_MASKED_EQ":
            return args[self.index] & self.value == self.value_two
        return _OPERATORS[self.op](args[self.index], self.value)

    def json(self) -> dict[str, int | str]:
        """As a profile writes it."""
        return {"index": self.index, "value": self.value, "valueTwo": self.value_two, "op": self.op}

    def boxes(self) -> tuple[Box, ...]:
        """The arguments that meet it, as a union."""
        return _boxes(self, self.op)

    def boxes_without(self) -> tuple[Box, ...]:
        """The arguments that do not meet it, as a union."""
        return _boxes(self, _OPPOSITE[self.op])

    def boxes32(self) -> tuple[Box, ...]:
        """The arguments that meet it on an architecture of 32 bits, where libseccomp compares the low halves alone."""
        low = Comparison(self.index, self.op, self.value & MASK32, self.value_two & MASK32)
        zero = _box(_half(self.index, True, equal(MASK32, 0)))
        return tuple(both for box in low.boxes() for b in zero if (both := meet(box, b)) is not None)


def _half(index: int, high: bool, word: Word | None) -> tuple[Half, Word | None]:
    return Half(index, high), word


def _box(*halves: tuple[Half, Word | None]) -> tuple[Box, ...]:
    """One box, or none when a half is empty."""
    box = {half: word for half, word in halves if word is not None}
    return (box,) if len(box) == len(halves) else ()


def _boxes(comparison: Comparison, op: str) -> tuple[Box, ...]:
    index, value, two = comparison.index, comparison.value, comparison.value_two
    high, low = value >> 32, value & MASK32
    same = _half(index, True, equal(MASK32, high))
    match op.removeprefix("SCMP_CMP_"):
        case "EQ":
            return _box(same, _half(index, False, equal(MASK32, low)))
        case "NE":
            return _box(_half(index, True, unequal(MASK32, high))) + _box(_half(index, False, unequal(MASK32, low)))
        case "MASKED_EQ":
            return _box(_half(index, True, equal(high, two >> 32)), _half(index, False, equal(low, two & MASK32)))
        case "not SCMP_CMP_MASKED_EQ":
            return _box(_half(index, True, unequal(high, two >> 32))) + _box(
                _half(index, False, unequal(low, two & MASK32))
            )
        case "GT" | "GE" as name:
            least = low + (name == "GT")
            return _box(_half(index, True, between(high + 1, MASK32))) + _box(
                same, _half(index, False, between(least, MASK32))
            )
        case name:  # LT, LE
            most = low - (name == "LT")
            return _box(_half(index, True, between(0, high - 1))) + _box(same, _half(index, False, between(0, most)))


Conjunction = tuple[Comparison, ...]


def boxes_of(conjunction: Conjunction, *, bits: int = 64) -> tuple[Box, ...]:
    """The calls that meet every comparison, as a union, on an architecture with arguments of so many bits."""
    union: tuple[Box, ...] = ({},)
    for comparison in conjunction:
        others = comparison.boxes() if bits == 64 else comparison.boxes32()
        union = tuple(both for one in union for other in others if (both := meet(one, other)) is not None)
    return union


def meets(conjunction: Conjunction, box: Box, *, bits: int = 64) -> bool:
    """Whether some call may be in both."""
    return any(meet(one, box) is not None for one in boxes_of(conjunction, bits=bits))


def express(path: Path, others: Sequence[Path]) -> Conjunction | None:
    """A conjunction that every call of `path` meets and no call of `others`; None when none is found.

    libseccomp splits a comparison of 64 bits into halves, so that one comparison becomes several paths: looking for
    what holds on a path and stays clear of every other answer puts them together again, whatever order they came in.
    """
    indexes = sorted({half.arg for half in path.box})
    choices: list[list[Comparison | None]] = []
    for index in indexes:
        holding = [
            c for c in _candidates(index, path, others) if all(meet(b, path.box) is None for b in c.boxes_without())
        ]
        choices.append([None, *holding])
    for chosen in itertools.islice(itertools.product(*choices), _MAX_TRIES):
        conjunction = tuple(comparison for comparison in chosen if comparison is not None)
        boxes = boxes_of(conjunction)
        if all(meet(box, other.box) is None for box in boxes for other in others):
            return conjunction
    return None


def _candidates(index: int, path: Path, others: Iterable[Path]) -> list[Comparison]:
    """Comparisons of an argument with the constants that the filter itself has for it, the plainest first."""
    paths = (path, *others)
    highs, lows = _constants(Half(index, True), paths), _constants(Half(index, False), paths)
    values = [high << 32 | low for high in highs for low in lows]
    masks_high, masks_low = _masks(Half(index, True), paths), _masks(Half(index, False), paths)
    masked = [
        Comparison(index, "SCMP_CMP_MASKED_EQ", high[0] << 32 | low[0], high[1] << 32 | low[1])
        for high in masks_high
        for low in masks_low
    ]
    plain = {op: [Comparison(index, op, value) for value in values] for op in _OPERATORS}
    return [
        *plain.pop("SCMP_CMP_EQ"),
        *(comparison for comparison in masked if comparison.value),
        *itertools.chain.from_iterable(plain.values()),
    ]


def _constants(half: Half, paths: Iterable[Path]) -> list[int]:
    found = {0}
    for path in paths:
        word = path.box.get(half)
        if word is not None:
            found |= {word.low, word.high, word.value}
            found |= {value for mask, value in word.excluded if mask == MASK32}
    return sorted(found)


def _masks(half: Half, paths: Iterable[Path]) -> list[tuple[int, int]]:
    found = {(0, 0)}
    for path in paths:
        word = path.box.get(half)
        if word is not None:
            found |= {(word.mask, word.value), *word.excluded}
    return sorted(found)
