"""A profile of its own for a workload that docker-default denies something: made, loaded, tried, written as a file."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from profiler import apparmor
from profiler.catalogue.apparmor import ACTION_CLASSES
from profiler.catalogue.safer import Advice
from profiler.errors import HostError
from profiler.model import OwnProfile, Recipe, SecurityOption, Trace
from profiler.output import write
from profiler.synthesizer.apparmor_profile import Opening, openings, profile_text
from profiler.synthesizer.confinement import APPARMOR_UNCONFINED
from profiler.verifier.bench import Bench


@dataclass(frozen=True)
class Offer:
    """The profile, where there is one, and what to tell of it or of what could be had."""

    profile: OwnProfile | None = None
    advice: tuple[Advice, ...] = ()


NOTHING: Final = Offer()


def own_profile(
    bench: Bench, trace: Trace, recipe: Recipe, output: Path | None, closed: Collection[str] = frozenset()
) -> Offer:
    """The profile with which the workload passes in place of `apparmor=unconfined`. `closed` names the classes of
    actions that the engine's own profile denies here as a whole.

    Nothing where the recipe leaves AppArmor on, or no rule of docker-default is known to have struck. Without an
    `output` to stand beside, or without the program that loads profiles, only what could be had is told. Raises
    HostError when the engine is gone.
    """
    if APPARMOR_UNCONFINED not in recipe:
        return NOTHING
    program = apparmor.parser()
    known = {one.name for one in ACTION_CLASSES if program is not None and apparmor.knows(program, f"{one.name},")}
    found = openings(trace.observations, closed, known)
    if not found:
        return NOTHING
    if program is None:
        return _could(found[0], f"install {apparmor.PARSER} (Debian's package apparmor) and profile again")
    if output is None or (output.exists() and not output.is_file()):  # a pipe or a device has nothing beside it
        return _could(found[0], "give -o FILE and it is made, tried and written beside the manifest")
    opening = _tried(bench, recipe, found, program)
    if opening is None:
        return NOTHING
    profile = _written(opening, output)
    told = Advice(
        f"confine it by a profile that is docker-default and allows {_list(opening.words)}",
        f"--security-opt apparmor={profile.name}",
        f"tried, the workload passes; load it first: {apparmor.PARSER} --replace {shlex.quote(profile.file)}",
    )
    return Offer(profile, (told,))


def _could(opening: Opening, how: str) -> Offer:
    return Offer(None, (Advice(f"a profile that is docker-default and allows {_list(opening.words)} may do", "", how),))


def _list(words: tuple[str, ...]) -> str:
    return ", ".join(words)


def _tried(bench: Bench, recipe: Recipe, found: tuple[Opening, ...], program: str) -> Opening | None:
    """The first of `found` with which the workload passes. What the parser refuses is no profile."""
    rest = recipe - {APPARMOR_UNCONFINED}
    with apparmor.Loaded(program) as loaded:
        for opening in found:
            name = loaded.name()
            try:
                loaded.load(profile_text(name, opening))
            except HostError:
                continue
            purpose = f"confined, allowed {_list(opening.words)}"
            if bench.run(rest | {SecurityOption(f"apparmor={name}")}, purpose).passed:
                return opening
    return None


def _written(opening: Opening, output: Path) -> OwnProfile:
    """Write the profile beside `output`. Its name tells other workloads' profiles apart, and a changed one from before.

    Raises UsageError when the file system refuses.
    """
    file = output.with_suffix(".apparmor").absolute()
    digest = hashlib.sha256(profile_text("", opening).encode()).hexdigest()[:8]
    name = f"docker-{re.sub(r'[^A-Za-z0-9_.-]', '-', output.stem)}-{digest}"
    remarks = (f"docker-default, and beyond it: {_list(opening.words)}", f"load it with {apparmor.PARSER} --replace")
    write(file, profile_text(name, opening, remarks=remarks))
    return OwnProfile(name, str(file), opening.words)
