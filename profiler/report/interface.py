"""What every report takes: one finished profile, as plain data. Nothing of tracing or engines comes in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from profiler.catalogue.safer import Advice
from profiler.model import HostFacts, JudgedRequirement, OwnProfile, Privilege, Trace, Verdict


@dataclass(frozen=True)
class Report:
    """One profile. `image` and `image_id` are empty outside an engine, and so is `docker_command`.

    `docker_args` replace `--privileged` after `docker run`; `docker_command` is the whole command, ready to run.
    `notes` and `warnings` are one line each: what is worth knowing of the runs, and what no recipe can make safe in the
    user's command. `less_confined` are privileges that were left out although the workload then keeps what it wanted to
    give up, each with the words for that. `apparmor` is the profile that may take the place of the recipe's
    `apparmor=unconfined`.
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
    less_confined: Mapping[Privilege, str] = field(default_factory=dict)
    apparmor: OwnProfile | None = None

    @property
    def fails_anyway(self) -> bool:
        """Whether the workload failed with every privilege, so that nothing was rerun."""
        return not self.verdict.verified and not self.verdict.runs

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """What no recipe can make safe, and what a safer one than the least would keep."""
        for_it = (
            f"left out, and the workload is less confined for it: {privilege.label} (passes without it, and "
            f"--keep-optional keeps it): {words}"
            for privilege, words in sorted(self.less_confined.items(), key=lambda item: item[0].label)
        )
        return (*self.warnings, *for_it)


__all__ = ["JudgedRequirement", "Report"]
