"""What a trace needs beyond an engine's AppArmor profile, which asks no capability and so leaves no check behind."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

from profiler.catalogue.apparmor import DENIED_CALLS, DENIED_FILES
from profiler.catalogue.paths import OPENS_FOR_WRITING
from profiler.model import Doubt, Observation, Recipe, Requirement, SecurityOption
from profiler.synthesizer.globs import matches
from profiler.synthesizer.requirements import EXAMPLES

APPARMOR_UNCONFINED = SecurityOption("apparmor=unconfined")
UNLABELLED = SecurityOption("label=disable")


def apparmor_requirements(observations: Iterable[Observation]) -> tuple[Requirement, ...]:
    """One requirement, or none: the calls that docker-default denies whatever the capabilities.

    A call that fails even unconfined is doubtful: the workload already lives with its failure.
    """
    found = sorted(struck(observations), key=lambda one: one[0])
    if not found:
        return ()
    doubt, reason, _ = found[0]
    evidence = tuple(observation for _, _, observation in found[:EXAMPLES])
    return (Requirement((frozenset({APPARMOR_UNCONFINED}),), reason, doubt, evidence),)


def denies_writing(path: str) -> bool:
    """Whether docker-default denies opening `path` to write, as the kernel names it.

    The kernel names a process's own directory by its number, never `self`.
    """
    if path.startswith(("/proc/self/", "/proc/thread-self/")):
        return False
    return any("w" in rule.access and matches(rule.glob, path) for rule in DENIED_FILES)


def refused_without_check(observations: Iterable[Observation]) -> Recipe:
    """What a failing run lacks where a call was refused and no capability was asked for: AppArmor answers EACCES,
    and so does SELinux (security/selinux/avc.c, avc_has_perm). An engine has one of them at most.

    File permissions answer so too, but ask for a capability before (fs/namei.c, generic_permission).
    """
    for observation in observations:
        if observation.result == -errno.EACCES and all(check.granted for check in observation.checks):
            return frozenset({APPARMOR_UNCONFINED, UNLABELLED})
    return frozenset()


def struck(observations: Iterable[Observation]) -> Iterator[tuple[Doubt, str, Observation]]:
    """The calls that docker-default denies, each with how sure it is that the workload needs it, and why."""
    for observation in observations:
        path = observation.path or ""
        if observation.call in DENIED_CALLS:
            reason = f"the engine's AppArmor profile denies {observation.call}"
        elif observation.call in OPENS_FOR_WRITING and denies_writing(path):
            reason = "the engine's AppArmor profile denies writing to this path"
        else:
            continue
        failed = observation.result is not None and observation.result < 0
        yield (Doubt.DOUBTFUL if failed else Doubt.LIKELY), reason, observation
