"""What this host and its engine can do, found by trying, and the mend of what is missing. Prints nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from profiler.errors import ProfilerError
from profiler.harness.docker.facts import engine_facts
from profiler.model import HostFacts
from profiler.report.evidence import printable
from profiler.witness.probes import Probe, probe_host

_ROOT = "root"
_MACHINE = "machine"
_ENGINE = "docker engine"
_SANDBOX = "overlayfs"  # the embedded sandbox stands on it

# The probes without which no trace can be made at all; of each row one must be there.
NEEDED: tuple[frozenset[str], ...] = (
    frozenset({_ROOT}),
    frozenset({_MACHINE}),
    frozenset({"pid namespace"}),
    frozenset({"user notification"}),
    frozenset({"ptrace"}),
    frozenset({"tracefs"}),
    frozenset({"cap_capable event", "kprobe events"}),
    frozenset({_ENGINE, _SANDBOX}),
)


@dataclass(frozen=True)
class Diagnosis:
    """Every probe in order, and whether a workload can be profiled here in any way."""

    probes: tuple[Probe, ...]

    @property
    def possible(self) -> bool:
        """Whether of each needed group at least one probe succeeded."""
        present = {probe.name for probe in self.probes if probe.ok}
        return all(group & present for group in NEEDED)


def _root() -> Probe:
    uid = os.geteuid()
    return Probe(_ROOT, uid == 0, f"uid {uid}", "run capprofile as root, for example with sudo")


def _machine() -> Probe:
    machine = platform.machine()
    return Probe(_MACHINE, machine == "x86_64", machine, "use an x86_64 host: calls are decoded for it only")


def _engine(facts: Callable[[], HostFacts]) -> tuple[Probe, ...]:
    try:
        found = facts()
    except ProfilerError as error:
        return (Probe(_ENGINE, False, error.message, error.hint),)
    version = f"{found.engine} {found.engine_version}, cgroup v{found.cgroup_version}"
    missing = ", ".join(found.not_granted)
    return (
        Probe(_ENGINE, True, version, ""),
        Probe(
            "grantable",
            not missing,
            f"{len(found.grantable)} capabilities" + (f"; not {missing}" if missing else ""),
            "the engine's own processes lack them, or it does not know them: if a workload needs one, start the"
            " engine where root has all capabilities, or a newer one",
        ),
    )


def examine(
    host: Callable[[], Iterable[Probe]] = probe_host, facts: Callable[[], HostFacts] = engine_facts
) -> Diagnosis:
    """Probe this host and its engine, without side effects. Never fails: what cannot be probed is a failed probe."""
    try:
        probes = tuple(host())
    except ProfilerError as error:
        probes = (Probe("host", False, error.message, error.hint),)
    return Diagnosis((_root(), _machine(), *probes, *_engine(facts)))


def render(diagnosis: Diagnosis) -> str:
    """A line for each probe, with the mend below what is missing, and the conclusion."""
    width = max(len(probe.name) for probe in diagnosis.probes)
    lines: list[str] = []
    for probe in diagnosis.probes:
        lines.append(
            printable(f"{'ok     ' if probe.ok else 'missing'}  {probe.name:<{width}}  {probe.detail}").rstrip()
        )
        if not probe.ok and probe.mend:
            lines.append(printable(f"         {'':<{width}}  mend: {probe.mend}"))
    lines.append("")
    lines.append(
        "profiling is possible here"
        if diagnosis.possible
        else "profiling is not possible here: mend what is missing above"
    )
    return "\n".join(lines) + "\n"
