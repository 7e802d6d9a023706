"""Removes each member of a passing recipe in turn and sees whether the workload still passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from profiler.model import Capability, Privilege, Recipe, Rerun, Syscalls
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


@dataclass(frozen=True)
class Hints:
    """What the trace tells of a recipe's members: less dangerous stand-ins for some, those that are needed as often as
    not, and those that the very same calls asked for, which so are needed together or not at all."""

    instead: Mapping[Privilege, Recipe] = field(default_factory=dict)
    doubtful: Recipe = frozenset()
    together: Sequence[Recipe] = ()


NO_HINTS: Final = Hints()


def prove(
    bench: Bench,
    recipe: Recipe,
    *,
    order: Callable[[Privilege], int],
    until: float | None = None,
    hints: Hints = NO_HINTS,
) -> Proof:
    """Remove each member of `recipe` (which passes) and drop what was not needed.

    A member whose removal failed in a larger set is tried again in the smaller one, since a workload that goes on
    without something goes another way and may then need less of the rest; only where no time is left for that, the
    first answer counts. So what is likely to go is tried first, and dropped at once:
    - what was added to a recipe that failed: mostly not needed; where it is much, in groups, halved where that fails.
      What one call asked for (a container engine's list for capset(2)) is removed at once, and taken apart only when
      all else has been tried;
    - what is `doubtful` of the first recipe: all of it together, since a workload that carries on after one refusal
      mostly does so after another; where that fails one by one, those last that have a stand-in;
    - calls that the engine's filter refuses: there often is another way (chroot for pivot_root);
    - the rest, the most dangerous first, as many at a time as the bench runs in parallel. Where several of these are
      unneeded alone, they are removed together; if that fails they stand in for each other, and go one by one. `FORKS`
      come first: what goes on without any of these may go on without all.
    The last rerun that passed was made with exactly the recipe that is left, and where something was dropped it is run
    once more: what passes without a member only now and then needs it, and gets it back. No rerun is started after
    `until` (monotonic seconds).

    A member that has a stand-in is removed with that put in its place, which proves as much where it fails, and
    otherwise finds the less dangerous recipe.
    """

    def ranked(privilege: Privilege) -> tuple[bool, int, str]:
        return privilege not in FORKS, -order(privilege), privilege.label

    removal = _Removal(bench, recipe, until, ranked, dict(hints.instead))
    ordered = sorted(recipe, key=ranked)
    failed = [rerun.recipe for rerun in bench.runs if not rerun.passed and rerun.recipe < recipe]
    added, lean = recipe - max(failed, key=len, default=recipe), min(failed, key=len, default=recipe)

    def untried() -> list[Privilege]:
        return [member for member in ordered if member in removal.current and member not in removal.needed]

    units = _units([member for member in ordered if member in added], hints.together)
    if len(units) >= GROUPED:
        removal.halves(units)
    else:
        removal.in_turn(units)
    open_ones = [member for member in untried() if member in hints.doubtful & lean]
    if len(open_ones) > 1:
        removal.without(open_ones)
    removal.in_turn([member] for member in sorted(open_ones, key=lambda member: member in removal.instead))
    removal.each([member for member in untried() if isinstance(member, Syscalls)])
    forks = [member for member in untried() if member in FORKS]
    removal.each(forks)
    if forks and len(removal.current) > 1 and removal.current.isdisjoint(FORKS):
        removal.without(sorted(removal.current, key=ranked))
    removal.each(untried())
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
    ranked: Callable[[Privilege], tuple[bool, int, str]]
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

    def halves(self, units: Sequence[Sequence[Privilege]]) -> None:
        """Drop what is not needed of `units`, of which not all can go; none is taken apart."""
        middle = len(units) // 2
        for half in (units[:middle], units[middle:]):
            rerun = self.without([member for unit in half for member in unit])
            if rerun is not None and not rerun.passed and len(half) > 1:
                self.halves(half)

    def in_turn(self, units: Iterable[Sequence[Privilege]]) -> None:
        """Remove one after the other: where one goes, the next one's removal may be known from both together."""
        for unit in units:
            left = [member for member in unit if member in self.current and member not in self.needed]
            if len(left) > 1:
                self.without(left)
            else:
                self.each(left)

    def each(self, members: Sequence[Privilege]) -> None:
        """Remove each alone, as many at a time as the bench runs, and drop at once what was not needed."""
        left = list(members)
        while left and not _late(self.until):
            batch, left = left[: self.bench.jobs], left[self.bench.jobs :]
            if self._apart([member for member in batch if member in self.current]):
                left = [member for member in left if member not in self.needed]

    def _apart(self, members: Sequence[Privilege]) -> bool:
        """Remove each alone, from the same recipe, then drop what was not needed; tells whether a stand-in was put
        in, which has settled all other members as well."""
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
                return True
            if rerun is not None:
                alone[member] = rerun
        self._drop([m for m, rerun in alone.items() if rerun.passed])
        return False

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
        if len(spare) > 1:
            rerun = self.without(spare)
            if rerun is None or rerun.passed:
                return
        for member in spare:
            self.without([member])


def _units(members: Sequence[Privilege], together: Iterable[Recipe]) -> list[list[Privilege]]:
    """`members` in their order, then those together that one of `together` holds: where something is needed, most
    likely these, and of the last unit that is known without a rerun."""
    units: dict[object, list[Privilege]] = {}
    for member in members:
        units.setdefault(next((unit for unit in together if member in unit), member), []).append(member)
    return sorted(units.values(), key=lambda unit: len(unit) > 1)


def _late(until: float | None) -> bool:
    return until is not None and time.monotonic() > until
