"""What a trace needs beyond an engine's AppArmor profile, which asks no capability and so leaves no check behind."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Iterator

from profiler.catalogue.apparmor import ACTION_CLASSES, DENIED_CALLS, DENIED_FILES, ActionClass
from profiler.catalogue.paths import OPENS_FOR_WRITING
from profiler.model import Doubt, Observation, Recipe, Requirement, SecurityOption
from profiler.synthesizer.globs import matches
from profiler.synthesizer.requirements import EXAMPLES, UNMASKED

APPARMOR_UNCONFINED = SecurityOption("apparmor=unconfined")
UNLABELLED = SecurityOption("label=disable")
MODULES_OFF: Recipe = frozenset({APPARMOR_UNCONFINED, UNLABELLED})  # an engine has one of them at most
# What may be missing without any call that shows it: opening to read is not stopped, and a masked file is empty or not
# there.
UNSEEN: Recipe = MODULES_OFF | {UNMASKED}


def apparmor_requirements(
    observations: Iterable[Observation], closed: Collection[str] = frozenset()
) -> tuple[Requirement, ...]:
    """One requirement, or none: the calls that docker-default denies whatever the capabilities. `closed` names the
    classes of actions that it denies here as a whole.

    A call that fails even unconfined is doubtful: the workload already lives with its failure.
    """
    found = sorted(struck(observations, closed), key=lambda one: one[0])
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


def classes_of(observations: Iterable[Observation]) -> frozenset[str]:
    """The classes of actions, by name, that these calls are about."""
    found = (class_of(observation) for observation in observations)
    return frozenset(one.name for one in found if one is not None)


def class_of(observation: Observation) -> ActionClass | None:
    """The class of actions that this call is about, if any."""
    for one in ACTION_CLASSES:
        if observation.call in one.calls and any(one.flag in word for word in observation.args):
            return one
    return None


def refused_without_check(observations: Iterable[Observation]) -> Recipe:
    """What a failing run lacks where a call was refused and no capability was asked for: AppArmor answers EACCES,
    and so does SELinux (security/selinux/avc.c, avc_has_perm).

    File permissions answer so too, but ask for a capability before (fs/namei.c, generic_permission).
    """
    for observation in observations:
        if observation.result == -errno.EACCES and all(check.granted for check in observation.checks):
            return MODULES_OFF
    return frozenset()


def struck(
    observations: Iterable[Observation], closed: Collection[str] = frozenset()
) -> Iterator[tuple[Doubt, str, Observation]]:
    """The calls that docker-default denies, each with how sure it is that the workload needs it, and why.

    `closed` names the classes of actions that it denies here as a whole.
    """
    for observation in observations:
        path = observation.path or ""
        one = class_of(observation)
        if one is not None and one.name in closed:
            reason = f"the engine's AppArmor profile has no rule for {one.name} and so denies {one.words}"
        elif observation.call in DENIED_CALLS:
            reason = f"the engine's AppArmor profile denies {observation.call}"
        elif observation.call in OPENS_FOR_WRITING and denies_writing(path):
            reason = "the engine's AppArmor profile denies writing to this path"
        else:
            continue
        failed = observation.result is not None and observation.result < 0
        yield (Doubt.DOUBTFUL if failed else Doubt.LIKELY), reason, observation
