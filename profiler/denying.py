"""Denied runs of a workload: one in place of the traced run, or one that completes a recipe with which it failed.

Devices, filters and security modules are as with every privilege in such a run: what they refuse nobody could make
again, and the run has to get to its end. What they would refuse is known from the run all the same, as from any trace.
"""

from __future__ import annotations

from typing import Protocol

from profiler.harness.interface import Announce, Sandbox
from profiler.model import Capability, Denial, Doubt, Recipe, Requirement, Trace, capability_names
from profiler.options import Options
from profiler.tracer.denial.denial import Denying
from profiler.tracer.denial.denier import NotDeniableError
from profiler.understanding import Understanding

SLOWER = 4.0  # how much longer a denied run may take than a rerun: each of its calls is stopped twice


class DeniedRun(Protocol):
    """Makes one denied run."""

    def __call__(self, *, denying: Denying) -> Trace:
        """Its trace. NotDeniableError where the workload cannot be run so."""


def traced(
    sandbox: Sandbox, options: Options, grantable: frozenset[str], run: DeniedRun, announce: Announce
) -> Trace | None:
    """The trace of a run that began with no capability; None where the workload cannot be run so, or fails so.

    Where it fails it is run once more with what was refused to calls that succeeded all the same.
    """
    announce("running it without any capability, and each refused call again with what it was refused for")
    trace = _tried(Denying(frozenset(), grantable), run, announce)
    if trace is None or _went_well(trace, options.exit_code):
        return trace
    announce(f"it failed so with exit code {trace.exit_code}: once more, with what was refused without a failure")
    found, _ = _found(sandbox, grantable, trace, options)
    more = capability_names(found)
    trace = _tried(Denying(more, grantable), run, announce)
    if trace is not None and not _went_well(trace, options.exit_code):
        announce(f"it failed so, too, with exit code {trace.exit_code}")
        return None
    return trace


def missing(
    sandbox: Sandbox, options: Options, recipe: Recipe, grantable: frozenset[str], run: DeniedRun, announce: Announce
) -> tuple[Recipe, tuple[Requirement, ...]]:
    """What one run that begins with the capabilities of `recipe`, which failed, shows to be missing in it, and why;
    nothing where the workload cannot be run so."""
    announce("running it once more, denied what is not in that recipe, to see all that it lacks")
    trace = _tried(Denying(capability_names(recipe), grantable), run, announce)
    if trace is None:
        return frozenset(), ()
    found, rows = _found(sandbox, grantable, trace, options)
    labels = " ".join(sorted(member.label for member in found - recipe))
    announce(f"it was refused {labels or 'nothing that could be given'} ({trace.seconds:.1f} s)")
    return found, rows


def _found(
    sandbox: Sandbox, grantable: frozenset[str], trace: Trace, options: Options
) -> tuple[Recipe, tuple[Requirement, ...]]:
    """What the run was given, and what it needs beside that; and its requirements. What was refused without a failure
    did not matter to a run that went well, and may have to one that did not."""
    given = frozenset(Capability(refusal.capability) for refusal in (trace.denial.refusals if trace.denial else ()))
    doubt = Doubt.EVEN if _went_well(trace, options.exit_code) else Doubt.DOUBTFUL
    understanding = Understanding(sandbox, grantable, trace, options.seccomp)
    return given | understanding.recipe(doubt), understanding.requirements


def _went_well(trace: Trace, exit_code: int) -> bool:
    if trace.stopped is not None:
        return not trace.stopped.complaint
    return trace.exit_code == exit_code or trace.interrupted is not None


def _tried(denying: Denying, run: DeniedRun, announce: Announce) -> Trace | None:
    try:
        return run(denying=denying)
    except NotDeniableError as error:
        announce(f"it cannot be run so: {error.message}")
        return None


def merged(denials: list[Denial | None]) -> Denial | None:
    """Several runs' denials as one; None unless all of them were denied something."""
    known = [denial for denial in denials if denial is not None]
    if len(known) != len(denials):
        return None
    return Denial(
        tuple(refusal for denial in known for refusal in denial.refusals),
        frozenset(check for denial in known for check in denial.withheld),
    )
