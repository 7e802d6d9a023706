"""The five words: harness, tracer, synthesizer, verifier, manifest. Prints nothing; `announce` gets one line a step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from profiler.catalogue.calls import catalogue
from profiler.catalogue.dangers import weight
from profiler.catalogue.safer import advice
from profiler.errors import WorkloadError
from profiler.harness.interface import Announce, Sandbox
from profiler.model import Doubt, HostFacts, Observation, Recipe, Requirement, Rerun, Status, Trace, Verdict
from profiler.options import Options, Prove
from profiler.profiles import Profiles, opens_calls, place_of
from profiler.report.interface import Report
from profiler.synthesizer.denials import denied, refusals
from profiler.synthesizer.judge import asked_for, judged
from profiler.tracer.session import trace as traced
from profiler.understanding import Understanding
from profiler.verifier.accept import Acceptance, checked, digests
from profiler.verifier.bench import Bench
from profiler.verifier.prove import Proof, prove
from profiler.verifier.refine import passing
from profiler.witness import tracefs
from profiler.witness.filter import EngineFilter

# Never watched for the engine's filter alone: every fork and every thread makes one. What a filter may deny of them
# (new namespaces) is in the catalogue's condition; clone3 is answered with ENOSYS so that libc falls back.
TOO_COMMON = frozenset({"clone", "clone3"})
QUICK = 15.0  # seconds that a rerun may take at least before it counts as hanging


def profile(sandbox: Sandbox, options: Options, announce: Announce) -> Report:
    """Find, verify and prove the least recipe for the sandbox's workload.

    A workload that fails with every privilege still gives a report: its verdict says that nothing was rerun.
    Raises ProfilerError for whatever else the user or this host causes.
    """
    facts = dataclasses.replace(sandbox.facts(), witnesses=_witnesses())
    with Profiles(sandbox.filter_of) as profiles:
        sandbox.profile_of = profiles.path_of
        case = _Case(sandbox, options, announce, facts, sandbox.broad(), profiles)
        if facts.not_granted:
            announce(f"not granted here, so not profiled: {', '.join(facts.not_granted)}")
        trace = case.watched()
        understanding = Understanding(sandbox, facts.grantable, trace, options.seccomp)
        if case.fails_anyway(trace):
            lean = understanding.recipe(Doubt.LIKELY)
            return case.report(trace, understanding.requirements, Verdict(lean, False, False, ()), Proof(lean, {}, ()))
        return case.settled(trace, understanding)


def _witnesses() -> tuple[str, ...]:
    kernel = tracefs.probe()
    return ("user_notification", *((kernel,) if kernel else ()))


@dataclass(frozen=True)
class _Case:
    """One workload on its way to a report."""

    sandbox: Sandbox
    options: Options
    announce: Announce
    facts: HostFacts
    broad: Recipe
    profiles: Profiles

    def watched(self) -> Trace:
        """The traced run under every privilege, or several of them merged."""
        engine_filter = self.sandbox.filter_of(frozenset())
        extra: frozenset[str] = frozenset()
        if engine_filter is not None:
            extra = EngineFilter(engine_filter).ever_denied() - catalogue().calls.keys() - TOO_COMMON
        traces = []
        for number in range(1, self.options.repeat + 1):
            again = f", run {number} of {self.options.repeat}" if self.options.repeat > 1 else ""
            self.announce(f"tracing the workload with every privilege{again}")
            traces.append(self._traced(self.broad, extra, quiet=number > 1))
        return _merged(traces)

    def _traced(self, recipe: Recipe, extra_calls: frozenset[str] = frozenset(), *, quiet: bool = True) -> Trace:
        return traced(
            self.sandbox.start(recipe, quiet=quiet),
            extra_calls=extra_calls,
            timeout=self.options.timeout,
            stop_after=self.options.run_for,
        )

    def fails_anyway(self, trace: Trace) -> bool:
        """Whether there is nothing to rerun: the workload fails with every privilege too.

        Raises WorkloadError when it is the user's own check that fails.
        """
        if self.options.run_for is not None or self.options.until_healthy:
            return False
        if self.options.check is not None and trace.exit_code == 0:
            failed = checked(self.options.check)
            if failed is not None:
                raise WorkloadError(f"even with every privilege {failed}", "mend the workload or its --check first")
        return trace.exit_code != 0

    def settled(self, trace: Trace, understanding: Understanding) -> Report:
        """The recipe that passes, reduced by removal, with what the reruns say of each requirement."""
        bench = self._bench(trace)
        full = understanding.recipe(Doubt.DOUBTFUL)
        everything = self.options.strict or self.options.keep_optional
        candidates = [full] if everything else [understanding.recipe(Doubt.LIKELY), full]
        recipe = passing(bench, candidates, self.broad, order=weight, investigate=self._denied)
        proof = Proof(recipe, {}, ()) if everything else self._proof(bench, recipe)
        verdict = Verdict(
            proof.recipe,
            verified=True,
            minimal=proof.complete and not any(trace.losses.values()),
            runs=bench.runs,
            denials={member: bench.failures.get(rerun.recipe, "") for member, rerun in proof.needed.items()},
        )
        return self.report(trace, self._told(understanding.requirements, proof), verdict, proof)

    def _bench(self, trace: Trace) -> Bench:
        options = self.options
        stdout = self.sandbox.rerun(self.broad, timeout=options.timeout).stdout if options.compare_output else None
        accepts = Acceptance(
            trace.exit_code, options.run_for is not None, stdout, options.check, digests(options.expect)
        )
        return Bench(
            self.sandbox,
            accepts,
            timeout=options.run_for or options.timeout or max(QUICK, 4 * trace.seconds + 10),
            jobs=1 if options.check or options.expect else options.jobs,
            on_run=self._tell,
        )

    def _denied(self, rerun: Rerun) -> Recipe:
        self.announce("watching the failing run to see what it is denied")
        return denied(self._traced(rerun.recipe), rerun.recipe, self.facts.grantable, weight)

    def _proof(self, bench: Bench, recipe: Recipe) -> Proof:
        if self.options.prove is Prove.NONE:
            return Proof(recipe, {}, ())
        until = time.monotonic() + self.options.prove_budget if self.options.prove is Prove.BUDGET else None
        return prove(bench, recipe, order=weight, until=until)

    def _told(self, rows: Sequence[Requirement], proof: Proof) -> tuple[Requirement, ...]:
        """Requirements whose evidence names no file get it from a watched run without the member: the refused call.

        Opening a file for reading is not stopped in the traced run (there are far too many of them), so the check is
        known from there but not the path. Without the member the call fails, and there it is stopped.
        """
        told = []
        for row in rows:
            calls = frozenset(o.call for o in row.evidence if isinstance(o, Observation) and o.call and not o.args)
            member = next((p for a in row.alternatives for p in a if p in proof.needed), None)
            if member is None or not calls or any(isinstance(o, Observation) and o.args for o in row.evidence):
                told.append(row)
                continue
            self.announce(f"watching a run without {member.label} to see what it is denied")
            refused = refusals(self._traced(proof.recipe - {member}, calls), row)
            named = tuple(observation for observation in refused if observation.args)
            told.append(dataclasses.replace(row, evidence=named[:4] + row.evidence))
        return tuple(told)

    def _tell(self, rerun: Rerun) -> None:
        labels = " ".join(sorted(p.label for p in rerun.recipe)) if len(rerun.recipe) <= 8 else "many privileges"
        outcome = rerun.outcome
        failed = "did not end in time" if outcome.timed_out else f"failed with exit code {outcome.exit_code}"
        ended = "passed" if rerun.passed else failed
        self.announce(f"{rerun.purpose}: [{labels or 'no privilege'}] {ended} ({outcome.seconds:.1f} s)")

    def report(self, trace: Trace, rows: Sequence[Requirement], verdict: Verdict, proof: Proof) -> Report:
        """Everything that the manifest and the table say."""
        requirements = judged(rows, verdict, proof.needed)
        optional = {r.privilege: asked_for(r.requirement) for r in requirements if r.status is Status.OPTIONAL}
        image, image_id = self.sandbox.image()
        if opens_calls(verdict.recipe):
            place = place_of(self.options.output)
            self.profiles.keep(verdict.recipe, place)
            self.sandbox.profile_path = str(place)
        return Report(
            facts=self.facts,
            engine=self.sandbox.name,
            command=self.sandbox.command(),
            image=image,
            image_id=image_id,
            trace=trace,
            requirements=requirements,
            verdict=dataclasses.replace(verdict, optional=optional),
            docker_args=self.sandbox.docker_args(verdict.recipe),
            docker_command=self.sandbox.docker_command(verdict.recipe),
            safer=advice(r.requirement for r in requirements if r.status is not Status.OPTIONAL),
            warnings=(*self.sandbox.cautions(), *trace.notes),
        )


def _merged(traces: Sequence[Trace]) -> Trace:
    """Several runs' traces as one: all that any of them showed."""
    if len(traces) == 1:
        return traces[0]
    losses: dict[str, int] = {}
    for trace in traces:
        for name, count in trace.losses.items():
            losses[name] = losses.get(name, 0) + count
    return dataclasses.replace(
        traces[-1],
        observations=tuple(o for trace in traces for o in trace.observations),
        devices=tuple(d for trace in traces for d in trace.devices),
        raw_calls=tuple(c for trace in traces for c in trace.raw_calls),
        losses=losses,
        exit_code=next((t.exit_code for t in traces if t.exit_code), 0),
        notes=tuple(dict.fromkeys(note for trace in traces for note in trace.notes)),
    )
