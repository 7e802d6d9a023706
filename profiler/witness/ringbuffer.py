"""Decodes the pages of the kernel's ring buffer as `trace_pipe_raw` hands them out, and the `format` files beside them.

Knows nothing of capabilities. The layout is the kernel's: kernel/trace/ring_buffer.c (`rb_event_length`,
`rb_event_data_length`, `rb_fix_abs_ts`, `ring_buffer_read_page`) and include/linux/ring_buffer.h
(`enum ring_buffer_type`). Only little-endian machines, where `type_len` is in the low five bits, are read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from

DATA_TYPE_LEN_MAX = 28  # RINGBUF_TYPE_DATA_TYPE_LEN_MAX
PADDING = 29  # RINGBUF_TYPE_PADDING
TIME_EXTEND = 30  # RINGBUF_TYPE_TIME_EXTEND
TIME_STAMP = 31  # RINGBUF_TYPE_TIME_STAMP
TIME_SHIFT = 27  # TS_SHIFT
ABSOLUTE_BITS = 0xF8 << 56  # TS_MSB: an absolute stamp has 59 bits, the page's own stamp lends the rest

MISSED_EVENTS = 1 << 31  # RB_MISSED_EVENTS, in the page's commit field
MISSED_STORED = 1 << 30  # RB_MISSED_STORED: their number follows the data
COMMIT_MASK = (1 << 27) - 1

_FIELD = re.compile(r"\sfield:(?P<type>[^;]*?)(?P<name>\w+)(?:\[[^\]]*\])?;\soffset:(\d+);\ssize:(\d+);\ssigned:(\d);")


@dataclass(frozen=True)
class Field:
    """Where a field of an event is: bytes from the start of the event's data."""

    offset: int
    size: int
    signed: bool

    @property
    def code(self) -> str:
        """The field's letter in a `struct` format."""
        letter = {1: "b", 2: "h", 4: "i", 8: "q"}[self.size]
        return letter if self.signed else letter.upper()


@dataclass(frozen=True)
class EventFormat:
    """One `events/*/*/format` file: the number that begins each such event, and its fields by name."""

    id: int
    fields: dict[str, Field]

    def unpacker(self, *names: str) -> struct.Struct:
        """A struct that reads these fields, named in the order of their offsets, from an event's data."""
        pattern, at = "<", 0
        for field in (self.fields[name] for name in names):
            pattern += f"{field.offset - at}x{field.code}"
            at = field.offset + field.size
        return struct.Struct(pattern)


def parse_fields(text: str) -> dict[str, Field]:
    """The fields of a `format` or `header_page` file; arrays and `__data_loc` keep their offset and size."""
    return {
        found["name"]: Field(int(found[3]), int(found[4]), found[5] == "1") for found in _FIELD.finditer("\n" + text)
    }


def parse_format(text: str) -> EventFormat:
    """Parse a `format` file. ValueError when it has no ID line."""
    found = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
    if found is None:
        raise ValueError("a format file without an ID line")
    return EventFormat(int(found[1]), parse_fields(text))


@dataclass(frozen=True)
class PageLayout:
    """`events/header_page`: offsets of a page's time stamp, commit counter and data, and the page's whole size."""

    timestamp: int
    commit: int
    data: int
    size: int


def parse_header_page(text: str) -> PageLayout:
    """Parse `events/header_page`, whose numbers follow `buffer_subbuf_size_kb`."""
    fields = parse_fields(text)
    data = fields["data"]
    return PageLayout(fields["timestamp"].offset, fields["commit"].offset, data.offset, data.offset + data.size)


def missed(page: bytes, layout: PageLayout) -> int:
    """How many events were overwritten before this page was read; 1 where the kernel could not store the number."""
    commit = _U64(page, layout.commit)[0]
    if not commit & MISSED_EVENTS:
        return 0
    end = layout.data + (commit & COMMIT_MASK)
    if commit & MISSED_STORED and end + 8 <= len(page):
        return int(_U64(page, end)[0])
    return 1


def records(page: bytes, layout: PageLayout) -> Iterator[tuple[int, int, int]]:
    """Yield (time in ns of the buffer's clock, start, end) of each event's data in `page`, oldest first."""
    stamp = time = _U64(page, layout.timestamp)[0]
    at = layout.data
    end = min(len(page), at + (_U64(page, layout.commit)[0] & COMMIT_MASK))
    while at + 4 <= end:
        header = _U32(page, at)[0]
        kind = header & 31
        if 0 < kind <= DATA_TYPE_LEN_MAX:
            time += header >> 5
            start = at + 4
            at = start + kind * 4
            yield time, start, at
        elif kind == 0:
            time += header >> 5
            start = at + 8
            at += 4 + _U32(page, at + 4)[0]
            yield time, start, at
            at = (at + 3) & ~3
        elif kind == TIME_EXTEND:
            time += (_U32(page, at + 4)[0] << TIME_SHIFT) + (header >> 5)
            at += 8
        elif kind == TIME_STAMP:
            time = (_U32(page, at + 4)[0] << TIME_SHIFT) + (header >> 5)
            time |= stamp & ABSOLUTE_BITS
            at += 8
        else:  # PADDING: the rest of the page, or an event that was discarded after it had been reserved
            if header >> 5 == 0:
                return
            time += header >> 5
            at += 4 + _U32(page, at + 4)[0]
