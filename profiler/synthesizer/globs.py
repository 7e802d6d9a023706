"""The globs of apparmor.d(5): what they match, and those that match all of it but one path. Knows no rule's meaning.

A glob is taken apart into tokens: a literal character, a class that excludes characters (`[^…]`), `?`, `*` and `**`.
Classes match a slash as well unless they name it; `?` and `*` do not.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

Tokens = tuple[str, ...]

_TOKEN = re.compile(r"\\.|\[\^(?:\\.|[^\]\\])+\]|\*\*|.", re.DOTALL)
_BRACES = re.compile(r"(?<!\\)\{([^{}]*)\}")
_SPECIAL = frozenset('*?[]{}^,\\"')
# What can stand in a rule as it is or behind a backslash; spaces, control characters and the like are left alone.
NAMEABLE = re.compile(r"/[!-~]*")


def matches(glob: str, path: str) -> bool:
    """Whether `glob` matches the whole `path`."""
    return _pattern(glob).fullmatch(path) is not None


def without(glob: str, path: str) -> tuple[str, ...]:
    """Globs that together match what `glob` matches, but not `path` (which must be `NAMEABLE`)."""
    kept: dict[str, None] = {}
    rests = list(_alternatives(glob))
    if not matches(glob, path):
        return (glob,)
    for place, character in enumerate(path):
        before, after = _quoted(path[:place]), []
        for rest in rests:
            for first, others in _unfolded(rest):
                if first == "":  # the glob ends here and the path goes on
                    kept[before] = None
                    continue
                left = _narrowed(first, character)
                if left:
                    kept[before + left + "".join(others)] = None
                if _takes(first, character):
                    after.append(others)
        rests = list(dict.fromkeys(after))
    for rest in rests:  # what is longer than the path
        if any(token not in ("*", "**") for token in rest):
            kept[_quoted(path) + "".join(rest)] = None
        elif rest:
            kept[f"{_quoted(path)}?{''.join(rest)}"] = None
            if "**" in rest:
                kept[f"{_quoted(path)}/**"] = None
    return tuple(kept)


@lru_cache(maxsize=256)
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile("|".join("".join(map(_as_regex, tokens)) for tokens in _alternatives(glob)), re.DOTALL)


def _as_regex(token: str) -> str:
    match token:
        case "**":
            return ".*"
        case "*":
            return "[^/]*"
        case "?":
            return "[^/]"
    return token if token.startswith("[") else re.escape(token[-1])


def _alternatives(glob: str) -> Iterator[Tokens]:
    """The glob without braces: one glob for each way through them."""
    parts = _BRACES.split(glob)  # text, what stood in braces, text, …
    choices = [part.split(",") if place % 2 else [part] for place, part in enumerate(parts)]
    for way in itertools.product(*choices):
        yield tuple(_TOKEN.findall("".join(way)))


def _unfolded(rest: Tokens) -> Iterable[tuple[str, Tokens]]:
    """The ways on from here, by their first token (empty: the end); a star gives one that takes a character, which
    leaves the star in the others, and those without it."""
    if not rest:
        return [("", ())]
    if rest[0] in ("*", "**"):
        return [(rest[0], rest), *_unfolded(rest[1:])]
    return [(rest[0], rest[1:])]


def _takes(token: str, character: str) -> bool:
    return re.fullmatch(_as_regex(token).removesuffix("*"), character, re.DOTALL) is not None


def _narrowed(token: str, character: str) -> str:
    """A token for one character, which takes what `token` takes but for `character`; empty where that is nothing."""
    match token:
        case "**":
            return _class(character)
        case "*" | "?":
            return _class("/" + character) if character != "/" else _class("/")
    if not _takes(token, character):
        return token
    return _class(character, token[2:-1]) if token.startswith("[") else ""


def _class(characters: str, more: str = "") -> str:
    """A class that excludes these and what `more` of another class excludes. A hyphen stands first, or is a range."""
    quoted = "".join(f"\\{c}" if c in "]\\^[" else c for c in characters if c != "-")
    dash = "-" if "-" in characters or more.startswith("-") else ""
    return f"[^{dash}{more.removeprefix('-')}{quoted}]"


def _quoted(text: str) -> str:
    return "".join(f"\\{c}" if c in _SPECIAL else c for c in text)
