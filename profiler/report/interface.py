"""What every report takes: one finished profile, as plain data. Nothing of tracing or engines comes in here."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.catalogue.safer import Advice
from profiler.model import HostFacts, JudgedRequirement, OwnProfile, Trace, Verdict


@dataclass(frozen=True)
class Report:
    """One profile. `image` and `image_id` are empty outside an engine, and so is `docker_command`.

    `docker_args` replace `--privileged` after `docker run`; `docker_command` is the whole command, ready to run.
    `notes` and `warnings` are one line each: what is worth knowing of the runs, and what no recipe can make safe in the
    user's command. `apparmor` is the profile that may take the place of the recipe's `apparmor=unconfined`.
    """

    facts: HostFacts
    engine: str
    command: tuple[str, ...]
    image: str
    image_id: str
    trace: Trace
    requirements: tuple[JudgedRequirement, ...]
    verdict: Verdict
    docker_args: tuple[str, ...]
    docker_command: tuple[str, ...]
    safer: tuple[Advice, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    apparmor: OwnProfile | None = None

    @property
    def fails_anyway(self) -> bool:
        """Whether the workload failed with every privilege, so that nothing was rerun."""
        return not self.verdict.verified and not self.verdict.runs


__all__ = ["JudgedRequirement", "Report"]
