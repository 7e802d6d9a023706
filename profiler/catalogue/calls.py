"""Which system calls are stopped, and for which arguments: reads `seccomp/traced-calls.toml`, which explains itself.

Also the numbers and names of calls (package `system-calls`). Nothing here decides anything.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import system_calls

from profiler.catalogue.quiet import QUIET
from profiler.kernel.bpf import Compare, Rule

FILE: Final = "traced-calls.toml"
NATIVE: Final = "x86_64"
FOREIGN: Final = "i386"
INT: Final = 0xFFFFFFFF
_PACKAGE = Path(__file__).resolve().parent.parent
_COMPARISON_KEYS = {"arg", "op", "value", "mask"}


class CatalogueInvalid(ValueError):
    """The catalogue contradicts its own description: a mistake in this project, not in its use."""


@dataclass(frozen=True)
class TracedCall:
    """One call: stopped when any of `conditions` holds as a whole, or always when there are none."""

    name: str
    conditions: tuple[tuple[Compare, ...], ...] = ()

    def matches(self, args: tuple[int, ...]) -> bool:
        """Whether a call with these six arguments is one that the catalogue stops."""
        return not self.conditions or any(all(c.holds(args) for c in alternative) for alternative in self.conditions)


@dataclass(frozen=True)
class Catalogue:
    """All traced calls by their x86-64 name, and the i386 names that are stopped whatever their arguments."""

    calls: Mapping[str, TracedCall]
    foreign: frozenset[str]

    def rules(self, extra: Iterable[str] = ()) -> tuple[Rule, ...]:
        """The rules for `kernel.bpf.assemble`; the calls of `extra` are stopped whatever their arguments.

        Names that this architecture does not have are left out.
        """
        always = frozenset(extra)
        rules = []
        for name in sorted(self.calls.keys() | always):
            number = number_of(name)
            if number is not None:
                conditions = () if name in always else self.calls[name].conditions
                rules.append(Rule(number, conditions))
        return tuple(rules)

    def stopping_rules(self, extra: Iterable[str] = ()) -> tuple[Rule, ...]:
        """Rules that match every call but the quiet ones: those only where a condition here holds for them."""
        always = frozenset(extra)
        rules = list(self.rules(always))
        rules += [Rule(number) for name, number in _table(NATIVE).items() if name not in QUIET]
        return tuple(rules)

    def foreign_numbers(self) -> frozenset[int]:
        """The i386 numbers of `foreign`."""
        numbers = (number_of(name, FOREIGN) for name in self.foreign)
        return frozenset(number for number in numbers if number is not None)


def data_file(name: str) -> Path:
    """A file of the top-level `seccomp/`: beside the package in a checkout, in its `data/` in a wheel."""
    for folder in (_PACKAGE.parent / "seccomp", _PACKAGE / "data" / "seccomp"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{name} is neither in {_PACKAGE.parent / 'seccomp'} nor in {_PACKAGE / 'data' / 'seccomp'}"
    )


@functools.cache
def catalogue() -> Catalogue:
    """The catalogue as shipped. Raises CatalogueInvalid when it contradicts its own description."""
    return parse(data_file(FILE).read_text(encoding="utf-8"))


def parse(text: str) -> Catalogue:
    """A catalogue from TOML text. Raises CatalogueInvalid naming the call and what is wrong with it."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueInvalid(f"not TOML: {error}") from error
    if unknown := document.keys() - {"i386", "constants", "call"}:
        raise CatalogueInvalid(f"unknown keys {sorted(unknown)}")
    constants = dict(_constants(document.get("constants", {})))
    calls: dict[str, TracedCall] = {}
    for entry in document.get("call", ()):
        if entry.keys() - {"names", "when"} or not entry.get("names"):
            raise CatalogueInvalid(f"a call has names and when, not {sorted(entry)}")
        for name in entry["names"]:
            if name in calls:
                raise CatalogueInvalid(f"{name} is listed twice")
            if number_of(name) is None:
                raise CatalogueInvalid(f"{name} is no call of {NATIVE}")
            calls[name] = TracedCall(name, tuple(_alternatives(name, entry.get("when", ()), constants)))
    foreign = frozenset(document.get("i386", ()))
    for name in sorted(foreign):
        if number_of(name, FOREIGN) is None:
            raise CatalogueInvalid(f"{name} is no call of {FOREIGN}")
    unconditional = {name for name, call in calls.items() if not call.conditions}
    return Catalogue(calls, foreign | {name for name in unconditional if number_of(name, FOREIGN) is not None})


def _constants(table: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from value.items()
        else:
            yield name, value


def _alternatives(
    name: str, when: Iterable[list[dict[str, Any]]], constants: Mapping[str, int]
) -> Iterator[tuple[Compare, ...]]:
    """Each alternative, with "in" spelled out as one alternative a value."""
    for alternative in when:
        if not alternative:
            raise CatalogueInvalid(f"{name}: an empty alternative would always hold")
        spelled: list[tuple[Compare, ...]] = [()]
        for comparison in alternative:
            choices = _choices(name, comparison, constants)
            spelled = [(*before, choice) for before in spelled for choice in choices]
        yield from spelled


def _choices(name: str, comparison: Mapping[str, Any], constants: Mapping[str, int]) -> list[Compare]:
    if comparison.keys() - _COMPARISON_KEYS or not {"arg", "op", "value"} <= comparison.keys():
        raise CatalogueInvalid(f"{name}: a comparison has arg, op, value and perhaps mask, not {sorted(comparison)}")
    mask = _number(name, comparison.get("mask", INT), constants)
    given, op = comparison["value"], comparison["op"]
    if op not in ("eq", "ne", "in") or (op == "in") != isinstance(given, list):
        raise CatalogueInvalid(f"{name}: op is eq or ne with one value, or in with a list of them")
    values = [_number(name, value, constants) for value in (given if op == "in" else [given])]
    for value in values:
        if value & ~mask:
            raise CatalogueInvalid(
                f"{name}: {value:#x} has bits outside the mask {mask:#x}, so it never compares equal"
            )
    try:
        return [Compare(comparison["arg"], "ne" if op == "ne" else "eq", value, mask) for value in values]
    except ValueError as error:
        raise CatalogueInvalid(f"{name}: {error}") from error


def _number(name: str, value: int | str, constants: Mapping[str, int]) -> int:
    """A number as it is, or constants joined by `|`."""
    if isinstance(value, int):
        return value
    result = 0
    for part in value.split("|"):
        if part not in constants:
            raise CatalogueInvalid(f"{name}: {part} is no constant of this file")
        result |= constants[part]
    return result


@functools.cache
def _table(architecture: str) -> Mapping[str, int]:
    table: Mapping[str, int] = system_calls.syscalls().load_arch_table(architecture)
    return table


@functools.cache
def _names(architecture: str) -> Mapping[int, str]:
    return {number: name for name, number in _table(architecture).items()}


def number_of(name: str, architecture: str = NATIVE) -> int | None:
    """The call's number (asm/unistd_64.h, asm/unistd_32.h), None when the architecture does not have it."""
    return _table(architecture).get(name)


def every_number(architecture: str) -> frozenset[int]:
    """The numbers of all calls that the architecture has."""
    return frozenset(_table(architecture).values())


def name_of(number: int, architecture: str = NATIVE) -> str:
    """The call's name; `syscall_NNN` for a number that no table here knows."""
    return _names(architecture).get(number, f"syscall_{number}")
