"""The gate: the program that stands where the workload will be, does nothing, and can be made to do anything.

It is a static ELF of one segment that loops on pause(2), so that it runs in any root file system, an empty one too.
Its one `syscall` instruction is what `steer` makes system calls with. Sources: elf(5), linux/elf.h,
fs/binfmt_elf.c.
"""

from __future__ import annotations

import os
import struct

from profiler.errors import HostError
from profiler.kernel import memory

# linux/elf.h, linux/elf-em.h
ET_EXEC = 2
EM_X86_64 = 62
PT_LOAD = 1
PT_GNU_STACK = 0x6474E551
PF_X, PF_W, PF_R = 1, 2, 4

_BASE = 0x400000  # far above vm.mmap_min_addr; where static programs usually lie
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr
_PHDR = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
_HEADERS = _EHDR.size + 2 * _PHDR.size

_CODE = (
    b"\xb8\x22\x00\x00\x00"  # mov eax, 34 (__NR_pause)
    b"\x0f\x05"  #             syscall
    b"\xeb\xf7"  #             jmp to the mov: a signal that is handled or ignored ends pause(2)
)

START_ADDRESS = _BASE + _HEADERS
"""Virtual address of the loop: where the gate goes on when it is let go again."""

SYSCALL_ADDRESS = START_ADDRESS + 5
"""Virtual address of its `syscall` instruction."""


def gate_elf() -> bytes:
    """The gate as a file's content (mode 0555 is enough). HostError where the machine is not x86_64."""
    machine = os.uname().machine
    if machine != "x86_64":
        raise HostError(
            f"no gate is known for this machine's architecture ({machine})",
            "run capprofile on an x86_64 host; the recipe that it finds holds for other architectures too",
        )
    ident = b"\x7fELF" + bytes((2, 1, 1))  # 64 bit, little-endian, current version; struct pads with zeros
    size = _HEADERS + len(_CODE)
    header = _EHDR.pack(
        ident, ET_EXEC, EM_X86_64, 1, START_ADDRESS, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, 2, 0, 0, 0
    )
    load = _PHDR.pack(PT_LOAD, PF_R | PF_X, 0, _BASE, _BASE, size, size, 0x1000)
    # Without this header kernels before 5.8 take an executable stack for wanted, which SELinux may refuse.
    stack = _PHDR.pack(PT_GNU_STACK, PF_R | PF_W, 0, 0, 0, 0, 0, 16)
    return header + load + stack + _CODE


def is_at_gate(pid: int) -> bool:
    """Whether the process `pid` has become the gate (an engine answers `start` a moment before it executes it).

    False also when there is no such process. Needs ptrace access to it.
    """
    try:
        return memory.read_bytes(pid, START_ADDRESS, len(_CODE)) == _CODE
    except OSError:
        return False
