"""Removes each member of a passing recipe in turn and sees whether the workload still passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from profiler.model import Capability, Privilege, Recipe, Rerun
from profiler.verifier.bench import Bench

GROUPED: Final = 4  # members from which on groups save reruns
# Without these a workload goes on, but another way: in a user namespace, or as who it was.
FORKS: Final = frozenset({Capability("SYS_ADMIN"), Capability("SETUID"), Capability("SETGID")})


@dataclass(frozen=True)
class Proof:
    """What removal showed: the recipe that is left, the members whose removal made the workload fail (with that
    rerun), and the members that were taken away because it passed without them."""

    recipe: Recipe
    needed: dict[Privilege, Rerun]
    dropped: tuple[Privilege, ...]

    @property
    def complete(self) -> bool:
        """Whether every member that is left was seen to be needed."""
        return set(self.needed) == set(self.recipe)


def prove(
    bench: Bench,
    recipe: Recipe,
    *,
    order: Callable[[Privilege], int],
    until: float | None = None,
    instead: Mapping[Privilege, Recipe] | None = None,
) -> Proof:
    """Remove each member of `recipe` (which passes), the most dangerous first, and drop what was not needed.

    What was added to a recipe that failed is mostly not needed: it is removed in groups, halved where that fails. Then
    each member is removed alone, as far as the bench runs in parallel. Where more than one turns out to be unneeded
    alone, all of them are removed together; if that fails they stand in for each other, and are dropped one at a time.
    The last rerun that passed was made with exactly the recipe that is left, and where something was dropped it is run
    once more: what passes without a member only now and then needs it, and gets it back. `FORKS` come first: a
    workload that goes on without them goes another way, and may then need less of the rest. For the same reason a
    member whose removal failed in a larger set is tried again in the smaller one; only where no time is left for that,
    the first answer counts. No rerun is started after `until` (monotonic seconds).

    `instead` are less dangerous stand-ins for some members: such a member is removed with its stand-in put in its
    place, which proves as much where it fails, and otherwise finds the less dangerous recipe.
    """

    def ranked(privilege: Privilege) -> tuple[int, str]:
        return -order(privilege), privilege.label

    removal = _Removal(bench, recipe, until, ranked, dict(instead or {}))
    ordered = sorted(recipe, key=ranked)
    removal.each([member for member in ordered if member in FORKS])
    added = recipe - max((r.recipe for r in bench.runs if not r.passed and r.recipe < recipe), key=len, default=recipe)
    if len(added) >= GROUPED:
        removal.halves([m for m in ordered if m in added and m in removal.current and m not in removal.needed])
    removal.each([member for member in ordered if member in removal.current and member not in removal.needed])
    removal.renew()
    removal.confirm()
    return Proof(
        removal.current, {m: r for m, r in removal.needed.items() if m in removal.current}, tuple(removal.dropped)
    )


@dataclass
class _Removal:
    """The recipe on its way down: `current` passes."""

    bench: Bench
    current: Recipe
    until: float | None
    ranked: Callable[[Privilege], tuple[int, str]]
    instead: dict[Privilege, Recipe]
    needed: dict[Privilege, Rerun] = field(default_factory=dict)
    dropped: list[Privilege] = field(default_factory=list)
    before: list[Recipe] = field(default_factory=list)  # the recipes that passed, before each drop

    def without(self, members: Sequence[Privilege]) -> Rerun | None:
        """Rerun without these and drop them if it passes; None where no time is left."""
        if _late(self.until):
            return None
        rerun = self.bench.run(self.current - frozenset(members), f"without {' '.join(m.label for m in members)}")
        if rerun.passed:
            self.before.append(self.current)
            self.current = rerun.recipe
            self.dropped += members
        elif len(members) == 1:
            self.needed[members[0]] = rerun
        return rerun

    def halves(self, members: Sequence[Privilege]) -> None:
        """Drop what is not needed of `members`, of which not all can go."""
        middle = len(members) // 2
        for half in (members[:middle], members[middle:]):
            rerun = self.without(half)
            if rerun is not None and not rerun.passed and len(half) > 1:
                self.halves(half)

    def each(self, members: Sequence[Privilege]) -> None:
        """Remove each alone, then drop what was not needed."""
        recipe = self.current
        less = {m: recipe - {m} | self.instead.get(m, frozenset()) for m in members}
        runs = self.bench.run_all({less[m]: self._purpose(m) for m in members}, self.until)
        alone = {m: runs[less[m]] for m in members if less[m] in runs}
        self.needed |= {m: rerun for m, rerun in alone.items() if not rerun.passed}
        for member in [m for m in alone if m in self.instead and alone[m].passed]:
            stand_in = alone.pop(member)
            rerun = None if _late(self.until) else self.bench.run(recipe - {member}, f"without {member.label}")
            if rerun is not None and not rerun.passed:
                self._replace(member, stand_in)
                return
            if rerun is not None:
                alone[member] = rerun
        self._drop([m for m, rerun in alone.items() if rerun.passed])

    def renew(self) -> None:
        """Prove again what was proved beside members that have gone since."""
        while not _late(self.until):
            stale = {m: rerun for m, rerun in self.needed.items() if m in self.current and not self._is_of(m, rerun)}
            if not stale:
                return
            for member in stale:
                del self.needed[member]
            self.each(sorted(stale, key=self.ranked))
            untried = {m: rerun for m, rerun in stale.items() if m in self.current and m not in self.needed}
            self.needed |= untried

    def _is_of(self, member: Privilege, rerun: Rerun) -> bool:
        """Whether `rerun` was made with what is left now, but for `member`."""
        return rerun.recipe - self.instead.get(member, frozenset()) == self.current - {member}

    def confirm(self) -> None:
        """Run what is left once more, and go back by one drop as long as that fails.

        What a run without a member showed holds for no larger recipe than the one that it was removed from.
        """
        while self.before and not _late(self.until):
            again = self.bench.again(self.current, "once more")
            if again.passed:
                return
            self.current = self.before.pop()
            back = self.current - again.recipe
            self.dropped = [member for member in self.dropped if member not in back]
            if len(back) == 1:
                self.needed |= dict.fromkeys(back, again)
            self.needed = {m: rerun for m, rerun in self.needed.items() if rerun.recipe >= self.current - {m}}
            self.each(sorted((member for member in self.current if member not in self.needed), key=self.ranked))
            self.renew()

    def _purpose(self, member: Privilege) -> str:
        stand_ins = " ".join(sorted(p.label for p in self.instead.get(member, ())))
        return f"{stand_ins} instead of {member.label}" if stand_ins else f"without {member.label}"

    def _replace(self, member: Privilege, stand_in: Rerun) -> None:
        """Go on with the stand-in, and with what was seen to be needed beside the member."""
        self.before.append(self.current)
        self.current = stand_in.recipe
        self.dropped.append(member)
        del self.instead[member]
        self.each(sorted(self.current - set(self.needed), key=self.ranked))

    def _drop(self, spare: Sequence[Privilege]) -> None:
        if len(spare) > 2:  # for two, one at a time takes one rerun more as well
            rerun = self.without(spare)
            if rerun is None or rerun.passed:
                return
        for member in spare:
            self.without([member])


def _late(until: float | None) -> bool:
    return until is not None and time.monotonic() > until
