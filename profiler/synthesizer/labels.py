"""From what SELinux denied a failing rerun to what it lacks, and to the calls of the trace that are meant."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterable, Sequence
from typing import Final

from profiler.catalogue.selinux import PERMITTED_CALLS
from profiler.model import Doubt, Evidence, LabelDenial, Observation, Process, Recipe, Requirement, Rerun, type_of
from profiler.synthesizer.confinement import UNLABELLED
from profiler.synthesizer.requirements import EXAMPLES

_COMM: Final = 15  # TASK_COMM_LEN - 1
_FILES: Final = frozenset({"file", "dir", "lnk_file", "sock_file", "fifo_file", "chr_file", "blk_file"})
_CAPABILITIES: Final = frozenset({"capability", "capability2", "cap_userns", "cap2_userns"})


def lacks_by_label(rerun: Rerun) -> Recipe:
    """What a failing rerun lacks as SELinux tells it: nothing where it denied nothing."""
    return frozenset({UNLABELLED}) if rerun.outcome.denials and not rerun.passed else frozenset()


def denials_of(needed: Rerun | None, runs: Iterable[Rerun]) -> tuple[LabelDenial, ...]:
    """What SELinux denied: to the run that shows that it must not (`needed`), or else to any that failed."""
    if needed is not None and needed.outcome.denials:
        return needed.outcome.denials
    failed = (run.outcome.denials for run in runs if lacks_by_label(run))
    return tuple(denial for denials in failed for denial in denials)


def denied_files(denials: Iterable[LabelDenial]) -> frozenset[str]:
    """The types of the files that were denied."""
    return frozenset(type_of(denial.tcontext) for denial in denials if denial.tclass in _FILES)


def label_requirements(observations: Sequence[Observation], denials: Sequence[LabelDenial]) -> tuple[Requirement, ...]:
    """One requirement whose evidence are these denials and the calls that they struck; none without denials."""
    if not denials:
        return ()
    struck: dict[Observation, None] = {}
    told: list[LabelDenial] = []
    for denial in denials:
        meant = sorted((one for one in observations if _is_struck(one, denial)), key=lambda one: not one.checks)
        struck |= dict.fromkeys(meant)
        process = next((one.process for one in observations if _is_of(one.process, denial.process.exe)), None)
        told.append(
            denial
            if process is None
            else dataclasses.replace(denial, process=dataclasses.replace(process, pid=denial.process.pid))
        )
    reason = "the host's SELinux policy denies it to the engine's containers, whatever their capabilities"
    evidence: tuple[Evidence, ...] = (*told[:EXAMPLES], *tuple(struck)[:EXAMPLES])
    return (Requirement((frozenset({UNLABELLED}),), reason, Doubt.EVEN, evidence),)


def _is_struck(observation: Observation, denial: LabelDenial) -> bool:
    """Whether this call may be the one that was denied: of that program, and about the same."""
    if not _is_of(observation.process, denial.process.exe) or not observation.call:
        return False
    if denial.tclass in _CAPABILITIES:
        asked = {permission.upper() for permission in denial.permissions}
        return any(check.capability in asked for check in observation.checks)
    if denial.path and observation.path and denial.path != "/":
        path = observation.path if "/" in denial.path else posixpath.basename(observation.path)
        if path == denial.path:
            return True
    return any(observation.call in PERMITTED_CALLS.get(permission, ()) for permission in denial.permissions)


def _is_of(process: Process, comm: str) -> bool:
    """Whether the kernel calls this program so: by what was executed, a link's name included."""
    names = {process.exe, *process.argv[:1]}
    return comm in {posixpath.basename(name)[:_COMM] for name in names}
