"""Turns a register into text, as strace would print it. Knows the tracee's memory, root, cwd and descriptors.

A renderer takes the register's value, the tracee and all six registers, and never fails: what cannot be read or named
is printed as a number.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from profiler.kernel import memory

Args = Sequence[int]
Renderer = Callable[[int, "Tracee", Args], str]
SHOWN = 64  # bytes of a string that is not a path
AT_FDCWD = -100  # linux/fcntl.h
_SIGNALS = {int(number): number.name for number in signal.Signals}


class Tracee:
    """One thread while its call waits: what its pointers, descriptors and relative paths mean. Make one a call."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._root: str | None = None
        self._strings: dict[tuple[int, int], str | None] = {}

    def string(self, address: int, limit: int = 4096) -> str | None:
        """The string at `address`; None where it cannot be read. Read once, however often it is asked for."""
        key = (address, limit)
        if key not in self._strings:
            try:
                self._strings[key] = memory.read_string(self.pid, address, limit)
            except OSError:
                self._strings[key] = None
        return self._strings[key]

    def bytes(self, address: int, length: int) -> bytes:
        """Up to `length` bytes at `address`, as many as can be read."""
        if not address:
            return b""
        try:
            return memory.read_bytes(self.pid, address, length)
        except OSError:
            return b""

    def number(self, address: int, size: int) -> int | None:
        """The unsigned number of `size` bytes at `address`; None where it cannot be read."""
        data = self.bytes(address, size)
        return int.from_bytes(data, "little") if len(data) == size else None

    def link(self, name: str) -> str | None:
        """/proc/PID/`name`, a link to a file, as the tracee itself would see it (below its own root)."""
        try:
            target = os.readlink(f"/proc/{self.pid}/{name}")  # noqa: PTH115 - a Path costs more than the link
            if self._root is None:
                self._root = os.readlink(f"/proc/{self.pid}/root")  # noqa: PTH115
        except OSError:
            return None
        if self._root != "/" and target.startswith(self._root):
            return target[len(self._root) :] or "/"
        return target

    def fd(self, fd: int) -> str | None:
        """What descriptor `fd` refers to: a path, or something like `socket:[7]`."""
        return self.link("cwd") if fd == AT_FDCWD else self.link(f"fd/{fd}")

    def child(self, number: int) -> str | None:
        """The program of the process that the tracee's pid namespace knows as `number`, if the tracee has started it;
        None if it has not, and where the kernel does not tell (CONFIG_PROC_CHILDREN). Empty for a zombie."""
        depth = len(_numbers(self.pid))
        for child in _children(self.pid):
            if _numbers(child)[depth - 1 : depth] == [number]:
                return _program(child)
        return None

    def path(self, address: int, dir_fd: int = AT_FDCWD) -> str | None:
        """The path at `address`, made absolute as the tracee sees it; symbolic links are not resolved.

        An empty path is what `dir_fd` refers to (AT_EMPTY_PATH).
        """
        text = self.string(address) if address else ""
        return None if text is None else self.absolute(text, dir_fd)

    def absolute(self, text: str, dir_fd: int = AT_FDCWD) -> str | None:
        """`text` as a path of the tracee, made absolute."""
        if text.startswith("/"):
            return text
        base = self.fd(dir_fd)
        if not text or base is None:
            return base
        while text.startswith("./"):
            text = text[2:].lstrip("/")
        return base if text in ("", ".") else f"{base.rstrip('/')}/{text}"


def _children(pid: int) -> list[int]:
    """The living and dead children of all threads of `pid` (proc_pid_children(5))."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - names are all that is wanted
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as children:  # noqa: PTH123
                found += map(int, children.read().split())
    return found


def _numbers(pid: int) -> list[int]:
    """What each pid namespace calls `pid`, from ours to its own (proc_pid_status(5), NSpid); empty when it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as status:  # noqa: PTH123
        return next(([int(word) for word in line.split()[1:]] for line in status if line.startswith(b"NSpid:")), [])
    return []


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return quoted(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"))[1:-1]  # noqa: PTH115
    return ""


def signed(value: int) -> int:
    """The register as the C type `int`."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def quoted(text: str) -> str:
    """A string between double quotes, with what a terminal should not get escaped."""
    if text.isprintable() and '"' not in text and "\\" not in text:  # nearly always: a surrogate is not printable
        return f'"{text}"'
    body = "".join(
        f"\\{c}" if c in '"\\' else c if c.isprintable() and not 0xDC80 <= ord(c) <= 0xDCFF else _escape(c)
        for c in text
    )
    return f'"{body}"'


def _escape(character: str) -> str:
    common = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return common.get(character) or "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def number(value: int, _: Tracee, __: Args) -> str:
    """An `int`."""
    return str(signed(value))


def long(value: int, _: Tracee, __: Args) -> str:
    """A 64-bit signed number."""
    return str(value - (1 << 64) if value >> 63 else value)


def size(value: int, _: Tracee, __: Args) -> str:
    """A size_t."""
    return str(value)


def octal(value: int, _: Tracee, __: Args) -> str:
    """A mode."""
    return f"0{value & 0xFFFFFFFF:o}" if value & 0xFFFFFFFF else "0"


def pointer(value: int, _: Tracee, __: Args) -> str:
    """An address whose target is not shown."""
    return f"{value:#x}" if value else "NULL"


def hexadecimal(value: int, _: Tracee, __: Args) -> str:
    """Flags that have no names here."""
    return f"{value:#x}" if value else "0"


def ident(value: int, _: Tracee, __: Args) -> str:
    """A user or group id, of which -1 means none."""
    return str(signed(value)) if value & 0xFFFFFFFF == 0xFFFFFFFF else str(value & 0xFFFFFFFF)


def text(value: int, tracee: Tracee, _: Args) -> str:
    """A string, cut when it is long."""
    if not value:
        return "NULL"
    content = tracee.string(value, SHOWN + 1)
    if content is None:
        return f"{value:#x}"
    return quoted(content) if len(content) <= SHOWN else quoted(content[:SHOWN]) + "…"


def path(value: int, tracee: Tracee, _: Args) -> str:
    """A path as it was given."""
    if not value:
        return "NULL"
    content = tracee.string(value)
    return f"{value:#x}" if content is None else quoted(content)


def fd(value: int, tracee: Tracee, _: Args) -> str:
    """A descriptor and what it refers to."""
    descriptor = signed(value)
    if descriptor == AT_FDCWD:
        return "AT_FDCWD"
    target = tracee.fd(descriptor) if descriptor >= 0 else None
    return str(descriptor) if target is None else f"{descriptor}<{quoted(target)[1:-1]}>"


def process(value: int, tracee: Tracee, _: Args) -> str:
    """A pid: `7`, or `7<child /bin/sleep>` for one that the caller has started."""
    pid = signed(value)
    program = tracee.child(pid) if pid > 0 else None
    return str(pid) if program is None else f"{pid}<{f'child {program}'.rstrip()}>"


def signal_name(value: int, _: Tracee, __: Args) -> str:
    """A signal."""
    return _SIGNALS.get(value & 0xFFFFFFFF) or str(signed(value))


def device(value: int, _: Tracee, __: Args) -> str:
    """A dev_t as `makedev(major, minor)`."""
    return f"makedev({os.major(value)}, {os.minor(value)})"


def named(names: Mapping[int, str], shown: Renderer = number, mask: int = 0xFFFFFFFF) -> Renderer:
    """One of some constants; `shown` renders what has no name."""

    def render(value: int, tracee: Tracee, args: Args) -> str:
        return names.get(value & mask) or shown(value, tracee, args)

    return render


def flags(names: Mapping[int, str], zero: str = "0", mask: int = 0xFFFFFFFF) -> Renderer:
    """Bits joined by `|`; those without a name as one number at the end."""

    def render(value: int, _: Tracee, __: Args) -> str:
        return join_flags(value & mask, names, zero)

    return render


def join_flags(value: int, names: Mapping[int, str], zero: str = "0") -> str:
    """The names of the bits in `value`. A name of several bits must come before its parts."""
    if not value:
        return names.get(0, zero)
    parts = []
    for bits, name in names.items():
        if bits and value & bits == bits:
            parts.append(name)
            value &= ~bits
    if value:
        parts.append(f"{value:#x}")
    return "|".join(parts)


def prefixed(prefix: str, table: Mapping[str, int]) -> dict[int, str]:
    """`{value: prefix + name}` of a table that leaves the common beginning away."""
    return {value: prefix + name for name, value in table.items()}
