"""What a trace means on this engine: its requirements, and the recipe that meets them up to some doubt."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from profiler.catalogue.dangers import weight
from profiler.harness.interface import Sandbox
from profiler.model import Doubt, Recipe, Requirement, SecurityOption, Syscalls, Trace, capability_names
from profiler.options import Seccomp
from profiler.synthesizer.confinement import APPARMOR_UNCONFINED, apparmor_requirements, classes_of
from profiler.synthesizer.denials import requirements_of
from profiler.synthesizer.parameters import with_sysctls
from profiler.synthesizer.pools import pools_of
from profiler.synthesizer.reduce import asked_together, doubted, reduce, stand_ins
from profiler.synthesizer.requirements import seccomp_requirements
from profiler.synthesizer.system import system_requirements
from profiler.verifier.prove import Hints
from profiler.witness.confined import denied_classes
from profiler.witness.filter import EngineFilter, missing_calls
from profiler.witness.nodes import present

UNCONFINED = SecurityOption("seccomp=unconfined")


class Understanding:
    """The requirements of one trace. They grow by what the engine's own filter denies a recipe's run."""

    def __init__(self, sandbox: Sandbox, grantable: frozenset[str], trace: Trace, seccomp: Seccomp) -> None:
        self._sandbox = sandbox
        self._trace = trace
        self._seccomp = seccomp
        confined = bool(sandbox.image()[0])
        self._rows: tuple[Requirement, ...] = requirements_of(
            trace, grantable, pools_of(trace, present), confined=confined
        )
        if APPARMOR_UNCONFINED in sandbox.broad():
            self._rows += apparmor_requirements(trace.observations, self.denied_classes)
        self._learned: tuple[Requirement, ...] = ()
        self._rows += system_requirements(trace, sandbox.broad())

    @functools.cached_property
    def denied_classes(self) -> frozenset[str]:
        """The classes of actions that the engine's AppArmor profile denies as a whole, of those that are in the trace.

        Found by trying, so not asked for where there is nothing to ask.
        """
        if not (asked := classes_of(self._trace.observations)):
            return frozenset()
        return asked & denied_classes(self._sandbox.confined_by())

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """Every requirement, with all that may meet it."""
        return with_sysctls((*self._rows, *self._learned), self._trace.sysctls)

    def learn(self, rows: Iterable[Requirement], members: Recipe) -> None:
        """Take over what another run of the workload tells of `members` that this trace shows no need of."""
        known = {privilege for row in self._rows for alternative in row.alternatives for privilege in alternative}
        self._learned += tuple(row for row in rows if any(a <= members and not a & known for a in row.alternatives))

    def recipe(self, up_to: Doubt) -> Recipe:
        """The least dangerous recipe that meets every requirement of at most this doubt, the filter's included.

        An engine's filter opens calls with the capabilities that are granted, so what it denies is known only once the
        capabilities are.
        """
        self._ask_filter(reduce(self._rows, weight, up_to=up_to))
        return reduce(self._rows, weight, up_to=up_to)

    def hints(self, recipe: Recipe) -> Hints:
        """What the trace tells of the recipe's members, for those who remove them."""
        rows = self.requirements
        return Hints(stand_ins(rows, recipe, weight), doubted(rows, recipe), asked_together(rows, recipe))

    def _ask_filter(self, recipe: Recipe) -> None:
        program = self._sandbox.filter_of(capability_names(recipe))
        if program is None or self._seccomp is Seccomp.DEFAULT:
            return
        rows = seccomp_requirements(missing_calls(EngineFilter(program), self._trace.raw_calls))
        if self._seccomp is Seccomp.UNCONFINED:
            rows = tuple(dataclasses.replace(row, alternatives=(frozenset({UNCONFINED}),)) for row in rows)
        self._rows = tuple(row for row in self._rows if not _is_of_filter(row)) + rows


def _is_of_filter(requirement: Requirement) -> bool:
    return any(isinstance(p, Syscalls) or p == UNCONFINED for a in requirement.alternatives for p in a)
