"""Decides at each call of a workload what its task may hold, and has refused calls made again with what they lacked.

Every task has V, the effective set that it would have, and is kept at what it holds of G, the capabilities granted so
far. A call that fails, and for which the kernel denied a check of a capability in V and not in G, is made again with
that one in G: until nothing more is denied, or the result is no failure any more. The kernel's check decides, not the
errno. What helped in no way is taken out of G again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from profiler.catalogue.calls import name_of, number_of
from profiler.catalogue.dangers import weight
from profiler.catalogue.sites import SUBSET_RULE, site_of
from profiler.catalogue.substitutes import SUBSTITUTES
from profiler.errors import ProfilerError
from profiler.kernel import memory
from profiler.kernel.capabilities import CAPSET_DATA, capset_arguments, held_by, mask, names
from profiler.kernel.notify import Notification
from profiler.kernel.overseer import Call, Injection
from profiler.model import Capability, Doubt, KernelCheck, Observation, Refusal
from profiler.tracer.calls import DecodedCall, decode
from profiler.tracer.decode.structs import permitted_by
from profiler.tracer.decode.values import Tracee
from profiler.tracer.denial.openers import Openers, confines
from profiler.tracer.denial.sets import SECBIT_NO_SETUID_FIXUP, TaskSets
from profiler.tracer.ledger import MAX_ERRNO, RESTARTS
from profiler.tracer.process import Callers
from profiler.witness.events import Check, Event, TaskExit

NR_MMAP, NR_CAPGET, NR_CAPSET, NR_PTRACE, NR_PRCTL = 9, 125, 126, 101, 157  # asm/unistd_64.h
PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS = 3, 0x22  # asm-generic/mman-common.h
PR_SET_SECUREBITS: Final = 28  # linux/prctl.h
AMBIENT_RAISE: Final = (47, 2)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
TRACING: Final = frozenset({0, 16, 0x4206})  # PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_SEIZE
LOOK_NS: Final = 20_000_000  # between two looks at the witness while no call fails
CHECKS: Final = 64  # remembered of one task
_IDS: Final = frozenset(
    number_of(f"set{name}") for name in ("uid", "reuid", "resuid", "fsuid", "gid", "regid", "resgid", "fsgid")
)
_NAMESPACES: Final = frozenset({number_of("unshare"), number_of("setns")})


class NotDeniableError(ProfilerError):
    """This workload cannot be run so: it does what only an untraced task can."""


class Denier:
    """Implements `Overseer`. `anchor` is the workload's first process, `granted` are the capabilities of G to begin
    with, `grantable` those that may ever be in it. `look` reads the witness to the present and feeds it to whoever
    wants it, `feed` here among them. `going_on` is told of each call that a task makes itself.
    """

    def __init__(
        self,
        anchor: int,
        granted: frozenset[str],
        grantable: frozenset[str],
        *,
        look: Callable[[], None],
        callers: Callers,
        going_on: Callable[[int, Call], None],
    ) -> None:
        self._anchor = anchor
        self.granted = mask(granted)
        self._grantable = mask(grantable)
        self._look = look
        self._callers = callers
        self._going_on = going_on
        self._tasks: dict[int, TaskSets] = {}
        self._checks: dict[int, deque[Check]] = {}
        self._openers = Openers()
        self._looked = 0
        self._home = _user_namespace(anchor)
        self._root = _root_of(anchor)
        self.refusals: list[Refusal] = []
        self.withheld: set[KernelCheck] = set()
        self.injections = 0

    def feed(self, events: Iterable[Event]) -> None:
        """The witness's events, in any order but for those of one task."""
        for event in events:
            if isinstance(event, Check):
                if not event.kind.accounting:
                    self._note(event)
                    self._checks.setdefault(event.pid, deque(maxlen=CHECKS)).append(event)
            elif isinstance(event, TaskExit):
                self._checks.pop(event.pid, None)

    def _note(self, event: Check) -> None:
        """A check that was refused for what the task would have held, whatever became of its call."""
        check, state = event.kind.check, self._tasks.get(event.pid)
        if check.granted or check.borrowed or state is None or state.alone:
            return
        if mask((check.capability,)) & state.virtual & self._grantable and not self._only_kept_down(check, state):
            self.withheld.add(check)

    def _only_kept_down(self, check: KernelCheck, state: TaskSets) -> bool:
        """Whether the check was refused only because nothing but the effective set is kept down: between processes of
        one user the kernel compares what the other is permitted with what this one has in effect. With the recipe both
        hold no more than it, and this one all of it."""
        return check.site == SUBSET_RULE and not self.granted & ~state.virtual

    # -- Overseer: births and ends -----------------------------------------------------------------------------------

    def born(self, task: int, parent: int) -> None:
        """See `Overseer`."""
        with contextlib.suppress(OSError):
            held = held_by(task)
            of = self._tasks.get(parent)
            if of is None:
                of = TaskSets(held.process, held.euid, held.fsuid, held.effective, held.effective)
            self._tasks[task] = of.born(held.process)
            self._leave_alone_in_other_namespace(task)

    def executed(self, task: int, former: int) -> None:
        """See `Overseer`."""
        self._look()  # what was asked for until now is judged by what the task would have had then
        with contextlib.suppress(OSError):
            held = held_by(task)
            state = self._tasks.pop(former, None) or self._tasks.get(task) or TaskSets(held.process, 0, 0, 0, 0)
            self._tasks[task] = state
            state.executed(held)

    def ended(self, task: int) -> None:
        """See `Overseer`."""
        self._look()
        self._tasks.pop(task, None)

    # -- Overseer: calls ---------------------------------------------------------------------------------------------

    def entering(self, task: int, call: Call) -> Injection | None:
        """See `Overseer`."""
        injection = self._before(task, call)
        if injection is None:
            self._going_on(task, call)
        return injection

    def _before(self, task: int, call: Call) -> Injection | None:
        now = time.monotonic_ns()
        if now - self._looked > LOOK_NS:
            self._looked = now
            self._look()
        state = self._tasks.get(task)
        if state is None:
            return None
        state.call, state.since = (call if call.native else None), now
        if not call.native or state.alone:
            return None
        if call.number == NR_PTRACE and call.args[0] in TRACING:
            raise NotDeniableError("the workload traces processes itself, and a traced one cannot be traced again", "")
        everything = self._openers.asks(task, call)
        wanted = state.virtual if everything else state.virtual & self.granted | state.once
        return None if wanted == state.actual else self._set(task, state, wanted)

    def _set(self, task: int, state: TaskSets, wanted: int) -> Injection | None:
        """Have the task take the effective set `wanted`: with a page of its memory to tell the kernel, made once."""
        self.injections += 1
        try:
            if not state.scratch:
                state.setting = None
                return Injection(
                    NR_MMAP, (0, memory.PAGE, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1 & (1 << 64) - 1, 0)
                )
            held = held_by(task)
            if wanted & held.permitted == state.actual:
                state.virtual &= held.permitted
                return None
            state.setting = wanted & held.permitted
            memory.write_bytes(task, state.scratch, capset_arguments(state.setting, held.permitted, held.inheritable))
        except (ProcessLookupError, FileNotFoundError):
            return None
        except OSError:  # the program has unmapped the page
            state.scratch = 0
            return self._set(task, state, wanted)
        return Injection(NR_CAPSET, (state.scratch, state.scratch + CAPSET_DATA))

    def injected(self, task: int, result: int) -> None:
        """See `Overseer`."""
        state = self._tasks.get(task)
        if state is None or result in RESTARTS:
            return
        if -MAX_ERRNO <= result < 0:
            state.alone = True
        elif state.setting is None:
            state.scratch = result
        else:
            state.actual = state.setting

    def left(self, task: int, result: int) -> bool:
        """See `Overseer`."""
        state = self._tasks.get(task)
        if state is None or state.call is None or state.elsewhere or result in RESTARTS:
            return False
        call, state.call = state.call, None
        if result >= 0:
            self._sets_a_list(task, call)
        if state.alone:
            return False
        if -MAX_ERRNO <= result < 0:
            if self._refused(task, state, call, result):
                return True
        else:
            with contextlib.suppress(OSError):
                self._succeeded(task, state, call, result)
        self._settle(state, result)
        return False

    # -- what succeeded ----------------------------------------------------------------------------------------------

    def _succeeded(self, task: int, state: TaskSets, call: Call, result: int) -> None:
        number = call.number
        if number in _IDS or number == NR_CAPSET:
            self._look()  # as in `executed`
        if number in _IDS:
            state.took_ids(held_by(task), self._root)
            self._callers.after(task, name_of(number))
        elif number == NR_CAPSET:
            state.took(held_by(task))
        elif number == NR_CAPGET:
            self._answer(task, state, call)
        elif number in _NAMESPACES:
            self._leave_alone_in_other_namespace(task)
        elif confines(call):
            for other in self._tasks.values():
                if other.process == state.process:  # SECCOMP_FILTER_FLAG_TSYNC confines them all
                    other.alone = True
        elif number == NR_PRCTL and call.args[0] == PR_SET_SECUREBITS:
            state.fixed = bool(call.args[1] & SECBIT_NO_SETUID_FIXUP)
        else:
            self._openers.opened(task, call, result)

    def _sets_a_list(self, task: int, call: Call) -> None:
        """Give what the call succeeded with only because the permitted set is not kept down: a program may set no more
        than it holds (security/commoncap.c, cap_capset, cap_task_prctl), which the kernel compares without a check."""
        asked = 0
        if call.number == NR_CAPSET:
            asked = permitted_by(Tracee(task), call.args)
            if 2 * asked.bit_count() > self._grantable.bit_count():  # it gives up some of what it has
                return
        elif call.number == NR_PRCTL and call.args[:2] == AMBIENT_RAISE:
            asked = 1 << call.args[2]
        lacking = asked & self._grantable & ~self.granted
        if lacking:
            self.granted |= lacking
            seen = self._observed(task, call, 0, ())
            self.refusals += [Refusal(name, seen, 0) for name in sorted(names(lacking))]

    def _observed(self, task: int, call: Call, result: int, checks: tuple[KernelCheck, ...]) -> Observation:
        shown = _shown(task, call)
        return Observation(shown.name, shown.args, result, shown.path, self._callers.of(task), checks)

    def _answer(self, task: int, state: TaskSets, call: Call) -> None:
        """A program that asks for its own sets with capget(2) is told what its effective set would be."""
        header, data = call.args[:2]
        own = memory.read_u32(task, header + 4) in (0, _number_within(task))
        if not own or not data:
            return
        words = 1 if memory.read_u32(task, header) == 0x19980330 else 2  # _LINUX_CAPABILITY_VERSION_1
        for at in range(words):
            memory.write_bytes(task, data + 12 * at, struct.pack("<I", state.virtual >> 32 * at & 0xFFFFFFFF))

    def _leave_alone_in_other_namespace(self, task: int) -> None:
        """What a task holds in a user namespace of the workload's own does not depend on the recipe."""
        if _user_namespace(task) != self._home:
            self._tasks[task].alone = self._tasks[task].elsewhere = True

    # -- what failed -------------------------------------------------------------------------------------------------

    def _refused(self, task: int, state: TaskSets, call: Call, result: int) -> bool:
        """Whether the call that failed so shall be made again, with one capability more."""
        self._look()
        made = [check.kind for check in self._checks.pop(task, ()) if check.time_ns >= state.since]
        denied = [
            kind.check
            for kind in made
            if not kind.check.granted
            and not kind.check.borrowed
            and mask((kind.check.capability,)) & state.virtual & ~state.actual & self._grantable
        ]
        if not denied:
            return False
        shown = _shown(task, call)
        telling = [check for check in denied if not _never(check, shown.name, shown.args)]
        if not telling:
            return False
        chosen = _least(telling)
        bit = mask((chosen.capability,))
        if self._only_kept_down(chosen, state):
            state.once |= bit
            return True
        if not bit & self.granted:
            checks = tuple(dict.fromkeys(kind.check for kind in made))
            state.refusals.append(Refusal(chosen.capability, self._observed(task, call, result, checks), result))
            self.granted |= bit
        return True

    def _settle(self, state: TaskSets, result: int) -> None:
        """The call is over: what was granted for it and did not help is withdrawn."""
        state.once = 0
        if not state.refusals:
            return
        refusals, state.refusals = state.refusals, []
        if result == refusals[0].observation.result:
            withdrawn = refusals
        else:
            given = {refusal.capability for refusal in refusals}
            withdrawn = [one for one in refusals if not _stand_ins(one).isdisjoint(given)]
        for refusal in withdrawn:
            self.granted &= ~mask((refusal.capability,))
        self.refusals += [dataclasses.replace(one, again=result) for one in refusals if one not in withdrawn]


def _never(check: KernelCheck, call: str, args: Sequence[str]) -> bool:
    site = site_of(check, call, args)
    return site is not None and site.doubt is Doubt.NEGLIGIBLE


def _instead(check: KernelCheck) -> set[str]:
    return {
        name
        for row in SUBSTITUTES
        if row.asked == check.capability and (not row.functions or check.site in row.functions)
        for name in row.instead
    }


def _least(denied: Sequence[KernelCheck]) -> KernelCheck:
    """The first that was asked for, or what the same check accepts in its stead and is less dangerous."""
    instead = _instead(denied[0])
    choices = [denied[0], *(check for check in denied[1:] if check.capability in instead)]
    return min(choices, key=lambda check: weight(Capability(check.capability)))


def _stand_ins(refusal: Refusal) -> set[str]:
    """What the kernel asked for after `refusal`'s capability, and would have accepted without it."""
    checks = (check for check in refusal.observation.checks if check.capability == refusal.capability)
    return {name for check in checks for name in _instead(check)}


def _shown(task: int, call: Call) -> DecodedCall:
    return decode(as_notified(task, call), task)


def as_notified(task: int, call: Call) -> Notification:
    """The call as a listener would tell of it."""
    a, b, c, d, e, f = call.args
    return Notification(0, task, call.number, call.arch, (a, b, c, d, e, f), 0)


def _user_namespace(task: int) -> int:
    return os.stat(f"/proc/{task}/ns/user").st_ino  # noqa: PTH116 - asked at every birth


def _root_of(task: int) -> int:
    """The uid, as this process numbers users, of the super-user in the task's user namespace."""
    with open(f"/proc/{task}/uid_map", encoding="ascii") as file:  # noqa: PTH123
        for line in file:
            inside, outside, _ = (int(word) for word in line.split())
            if inside == 0:
                return outside
    return 0


def _number_within(task: int) -> int:
    """The task's number in its own pid namespace."""
    with open(f"/proc/{task}/status", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        return next(int(line.split()[-1]) for line in file if line.startswith("NSpid:"))
