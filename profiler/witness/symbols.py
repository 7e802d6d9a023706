"""Turns addresses of the kernel's text into function names, from /proc/kallsyms."""

from __future__ import annotations

import re
from bisect import bisect_right
from pathlib import Path

from profiler.errors import HostError

KALLSYMS = Path("/proc/kallsyms")
MODULES = Path("/proc/modules")

# What compilers append to a function that they split, specialised or moved (gcc -fipa-*, -freorder-functions, LTO)
_SUFFIX = re.compile(r"(?:\.(?:constprop|isra|part|cold|llvm|lto_priv|clone)(?:\.[0-9]+)*)+$")


def plain(name: str) -> str:
    """A function's name as its source spells it: `__set_oom_adj.isra.0` is `__set_oom_adj`."""
    return _SUFFIX.sub("", name)


def parse_kallsyms(text: str) -> tuple[list[int], list[str]]:
    """Addresses in ascending order and the functions that begin there (kinds t, T, w, W), without modules' names."""
    found: list[tuple[int, str]] = []
    for line in text.splitlines():
        address, kind, name = line.split(None, 3)[:3]
        # __pfx_ symbols are the padding before a function, which is never executed (CONFIG_PREFIX_SYMBOLS)
        if kind in "tTwW" and not name.startswith("__pfx_"):
            found.append((int(address, 16), name))
    found.sort(key=lambda symbol: symbol[0])
    return [address for address, _ in found], [name for _, name in found]


# The first user namespace's structure (kernel/user.c): a variable, listed with CONFIG_KALLSYMS_ALL
_FIRST_NAMESPACE = re.compile(r"^([0-9a-f]+) \w init_user_ns$", re.MULTILINE)


class Symbols:
    """The kernel's functions by address: read on first use, and again when the list of modules has changed.

    `first_namespace` is the address of the first user namespace, None where the kernel does not list variables.
    """

    def __init__(self) -> None:
        self._addresses: list[int] = []
        self._names: list[str] = []
        self._modules: str | None = None
        self.first_namespace: int | None = None

    def refresh(self) -> None:
        """Read /proc/kallsyms if that was not done yet or a module came or went since.

        HostError where this process may not see addresses (kernel/kallsyms.c, `kallsyms_show_value`).
        """
        try:
            modules = MODULES.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:  # a kernel without modules
            modules = ""
        # the third column counts users and the fifth the state: only names and addresses say what is loaded
        modules = "\n".join(" ".join(line.split()[:1] + line.split()[5:6]) for line in modules.splitlines())
        if modules == self._modules:
            return
        listed = KALLSYMS.read_text(encoding="utf-8", errors="replace")
        self._addresses, self._names = parse_kallsyms(listed)
        first = _FIRST_NAMESPACE.search(listed)
        self.first_namespace = int(first[1], 16) if first else None
        self._modules = modules
        if not self._addresses or self._addresses[-1] == 0:
            raise HostError(
                "the kernel does not show the addresses of its functions in /proc/kallsyms",
                "run as root with CAP_SYSLOG and kernel.kptr_restrict below 2",
            )

    def name(self, address: int) -> str:
        """The function that a return address is in; its number in hexadecimal where no function is known.

        One is subtracted: a call that never returns is a function's last instruction, and its return address is
        the next function's first byte.
        """
        at = bisect_right(self._addresses, address - 1) - 1
        return self._names[at] if at >= 0 else f"0x{address:x}"
