"""What a task would have and what it has: how calls change an effective set that is kept down. Sets are bits.

Only the effective set is ever kept down. So a program's own calls change the permitted one as they would, and where
the kernel makes the effective set from that (an exec, capset, becoming root again) it is what it would be, and is kept
down anew before the task's next call. Sources: capabilities(7), security/commoncap.c (cap_emulate_setxuid,
cap_task_fix_setuid, cap_capset).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from profiler.kernel.capabilities import Held, mask
from profiler.kernel.overseer import Call
from profiler.model import Refusal

# linux/capability.h, CAP_FS_MASK: what setfsuid(2) gives and takes
FILE_SYSTEM: Final = mask(
    ("CHOWN", "MKNOD", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "LINUX_IMMUTABLE", "MAC_OVERRIDE")
)
# Linux 2.6.29 to 6.12 count MKNOD and LINUX_IMMUTABLE differently; both are asked of the ids alone where it matters
SECBIT_NO_SETUID_FIXUP: Final = 1 << 2  # linux/securebits.h


@dataclass(slots=True)
class TaskSets:
    """One thread. `virtual` is what its effective set would be, `actual` what it is.

    `alone`: nothing is kept down any more, nor can be; `elsewhere`: since it lives in a user namespace of its own.
    `scratch` is the address of a page of ours in its memory, 0 without one. `fixed`: its sets do not follow its ids
    (SECBIT_NO_SETUID_FIXUP). `once` are capabilities for the call that is under way and no other.
    """

    process: int
    euid: int
    fsuid: int
    virtual: int
    actual: int
    scratch: int = 0
    alone: bool = False
    elsewhere: bool = False
    fixed: bool = False
    call: Call | None = None
    since: int = 0  # ns, monotonic: when the call was entered
    once: int = 0
    setting: int | None = None  # the effective set that an injected capset gives it; None: it maps its page
    refusals: list[Refusal] = field(default_factory=list)  # of the call that is under way

    def born(self, process: int) -> TaskSets:
        """A child, or another thread, of `process`."""
        return TaskSets(
            process,
            self.euid,
            self.fsuid,
            self.virtual,
            self.actual,
            self.scratch,
            self.alone,
            self.elsewhere,
            self.fixed,
        )

    def executed(self, held: Held) -> None:
        """It has become another program: its effective set is what it would be, and nothing of ours is left in it."""
        self.process, self.scratch, self.call, self.once = held.process, 0, None, 0
        self.refusals.clear()
        self.took(held)

    def took(self, held: Held) -> None:
        """It has set its effective set itself, or the kernel has made it from the permitted one."""
        self.euid, self.fsuid = held.euid, held.fsuid
        self.virtual = self.actual = held.effective

    def took_ids(self, held: Held, root: int) -> None:
        """It has taken other ids, of which `root` is the super-user's: cap_emulate_setxuid and what setfsuid does."""
        if not self.fixed:
            if root == self.euid != held.euid:
                self.virtual = 0
            elif self.euid != root == held.euid:
                self.virtual = held.permitted
            elif self.euid == held.euid and root == self.fsuid != held.fsuid:
                self.virtual &= ~FILE_SYSTEM
            elif self.euid == held.euid and self.fsuid != root == held.fsuid:
                self.virtual |= FILE_SYSTEM & held.permitted
        self.euid, self.fsuid = held.euid, held.fsuid
        self.virtual &= held.permitted
        self.actual = held.effective
