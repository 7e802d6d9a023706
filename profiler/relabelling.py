"""A host's files with the containers' own label in place of `label=disable`: offered where it was tried, or may do."""

from __future__ import annotations

from collections.abc import Iterable

from profiler.catalogue.safer import Advice
from profiler.harness.interface import Sandbox
from profiler.model import LabelDenial, Recipe
from profiler.synthesizer.confinement import UNLABELLED
from profiler.synthesizer.labels import denied_files
from profiler.verifier.bench import Bench

_TEXT = "let the engine give these files the containers' label (Z: this one's alone)"
_KEPT = "SELinux then goes on confining the workload; other programs of the host may lose their access to these files"


def relabelling(bench: Bench, sandbox: Sandbox, recipe: Recipe, denials: Iterable[LabelDenial]) -> tuple[Advice, ...]:
    """What to tell where SELinux denied the workload files that the user mounts from the host; nothing otherwise, or
    where a run with relabelled copies of these fails. Raises HostError when the engine is gone."""
    types = denied_files(denials)
    if UNLABELLED not in recipe or not types:
        return ()
    with sandbox.relabelled(types) as places:
        if places.tried and not bench.trial(recipe - {UNLABELLED}, "confined, its files relabelled").passed:
            return ()
    tried = "tried on copies, the workload passes" if places.tried else "not tried, as it would change your own files"
    return (Advice(_TEXT, " ".join(places.flags), f"{tried}; {_KEPT}"),) if places.flags else ()
