"""The five words: harness, tracer, synthesizer, verifier, manifest. Prints nothing; `announce` gets one line a step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from profiler import confining, denying, observing
from profiler.catalogue.calls import catalogue
from profiler.catalogue.dangers import weight
from profiler.catalogue.safer import advice
from profiler.criteria import (
    acceptance,
    check_health,
    judge_traced,
    meaning,
    service_again,
    service_of,
    time_limit,
)
from profiler.errors import UnverifiedError
from profiler.harness.interface import Announce, Sandbox, Service
from profiler.merging import merged
from profiler.model import (
    AllowList,
    Called,
    Doubt,
    HostFacts,
    Privilege,
    Recipe,
    Requirement,
    Rerun,
    Status,
    Syscalls,
    Sysctl,
    Trace,
    Verdict,
    needs_profile,
)
from profiler.options import Options, Prove, Seccomp, Tracer
from profiler.profiles import Profiles, place_of
from profiler.relabelling import relabelling
from profiler.report.interface import Report
from profiler.signals import first_interrupt
from profiler.synthesizer.confinement import UNLABELLED, UNSEEN, refused_without_check
from profiler.synthesizer.denials import denied
from profiler.synthesizer.divergences import calls_of, divergence, unmet
from profiler.synthesizer.judge import asked_for, judged
from profiler.synthesizer.labels import denials_of, label_requirements, lacks_by_label
from profiler.synthesizer.named import named
from profiler.synthesizer.reduce import reduce
from profiler.synthesizer.system import beyond_reach, groups_made, mounts
from profiler.synthesizer.unconfined import less_confined
from profiler.telling import told
from profiler.tracer.denial.denial import Denying
from profiler.tracer.recorder import Progress
from profiler.tracer.session import Interruptible
from profiler.tracer.session import trace as traced
from profiler.understanding import UNCONFINED, Understanding
from profiler.verifier.bench import Bench
from profiler.verifier.prove import Proof, prove
from profiler.verifier.refine import passing
from profiler.witness import tracefs
from profiler.witness.filter import EngineFilter

# Never watched for the engine's filter alone: every fork and every thread makes one. What a filter may deny of them
# (new namespaces) is in the catalogue's condition; clone3 is answered with ENOSYS so that libc falls back.
TOO_COMMON = frozenset({"clone", "clone3"})
HINT_SECONDS = 30.0  # after which a workload may be a service that never ends


def profile(sandbox: Sandbox, options: Options, announce: Announce) -> Report:
    """Find, verify and prove the least recipe for the sandbox's workload.

    A workload that fails with every privilege still gives a report: its verdict says that nothing was rerun.
    Raises ProfilerError for whatever else the user or this host causes.
    """
    facts = dataclasses.replace(sandbox.facts(), witnesses=_witnesses())
    with Profiles(sandbox.filter_of) as profiles:
        sandbox.profile_of, sandbox.expected = profiles.path_of, options.expect
        check_health(options, sandbox)
        if options.seccomp is Seccomp.OBSERVED:
            observing.check_possible(sandbox)
        case = _Case(sandbox, options, announce, facts, sandbox.broad(), profiles)
        if facts.not_granted:
            announce(f"not granted here, so not profiled: {', '.join(facts.not_granted)}")
        trace = case.watched()
        sandbox.groups = groups_made(trace)
        understanding = Understanding(sandbox, facts.grantable, trace, options.seccomp)
        if trace.exit_code != options.exit_code and trace.stopped is None and trace.interrupted is None:
            lean = understanding.recipe(Doubt.EVEN)
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

    @functools.cached_property
    def _denied_calls(self) -> frozenset[str]:
        """The calls that the engine's own filter ever denies; none where it installs no filter."""
        engine_filter = self.sandbox.filter_of(frozenset())
        return EngineFilter(engine_filter).ever_denied() if engine_filter is not None else frozenset()

    def watched(self) -> Trace:
        """The traced run under every privilege, or several of them merged."""
        extra = self._denied_calls - catalogue().calls.keys() - TOO_COMMON
        traces = []
        for number in range(1, self.options.repeat + 1):
            again = f", run {number} of {self.options.repeat}" if self.options.repeat > 1 else ""
            run = functools.partial(
                self._traced,
                self.broad,
                service_of(self.options),
                extra,
                quiet=number > 1,
                interruptible=first_interrupt,
                every_call=self.options.seccomp is Seccomp.OBSERVED,
            )
            trace = None
            if self.options.tracer is Tracer.DENY:
                trace = denying.traced(self.sandbox, self.options, self.facts.grantable, run, self.announce)
                run.keywords["quiet"] = True  # what it prints has been seen
            else:
                self.announce(f"tracing the workload with every privilege{again}")
            traces.append(trace or run())
            if traces[-1].interrupted is not None:
                self._interrupted(traces[-1])
            elif self.options.run_for is not None and traces[-1].stopped is None:
                self.announce("it ended by itself before that time: profiled as a command that ends")
            judge_traced(self.options, traces[-1])
        return merged(traces, self.options.exit_code)

    def _interrupted(self, trace: Trace) -> None:
        """Ctrl-C has ended the service, which so has done what it should."""
        self.announce(f"stopped after {trace.interrupted:.1f} s: going on to the reruns (Ctrl-C again ends them)")

    def _traced(
        self,
        recipe: Recipe,
        service: Service | None,
        extra_calls: frozenset[str] = frozenset(),
        *,
        quiet: bool = True,
        interruptible: Interruptible = contextlib.nullcontext,
        every_call: bool = False,
        denying: Denying | None = None,
        timeout: float | None = None,
    ) -> Trace:
        return traced(
            self.sandbox.start(recipe, quiet=quiet),
            extra_calls=extra_calls,
            timeout=timeout or self.options.timeout,
            service=service,
            on_progress=None if quiet or service is not None else self._hint(),
            interruptible=interruptible,
            every_call=every_call,
            denying=denying,
        )

    def _hint(self) -> Progress:
        """Says once that what goes on for so long may be a service."""
        said = False

        def progress(seconds: float, calls: int) -> None:
            nonlocal said
            if not said and seconds > HINT_SECONDS:
                said = True
                self.announce(f"still running after {seconds:.0f} s: a service? stop it with Ctrl-C, or use --for")

        return progress

    def settled(self, trace: Trace, understanding: Understanding) -> Report:
        """The recipe that passes, reduced by removal, with what the reruns say of each requirement."""
        passes = meaning(self.options, trace)
        if len(passes) > 1 or service_again(self.options, trace) is not None:
            self.announce(f"a rerun passes if {' and '.join(passes)}")
        bench = self._bench(trace, understanding)
        full = understanding.recipe(Doubt.DOUBTFUL)
        candidates = [full] if self.options.strict else [understanding.recipe(Doubt.EVEN), full]
        proof = self._proof(bench, self._passing(trace, understanding, bench, candidates), understanding)
        recipe = self._with_optional(bench, understanding, proof.recipe) if self.options.keep_optional else proof.recipe
        verdict = Verdict(
            recipe,
            verified=True,
            minimal=recipe == proof.recipe and proof.complete and not any(trace.losses.values()),
            runs=bench.runs,
            denials={member: bench.failures.get(rerun.recipe, "") for member, rerun in proof.needed.items()},
            passes=passes,
            kept=recipe - proof.recipe,
        )
        if trace.called is not None:
            trace, verdict = self._narrowed(trace, trace.called, bench, verdict)
        own = confining.own_profile(bench, trace, verdict.recipe, self.options.output, understanding.denied_classes)
        rows = self._told(trace, understanding.requirements, proof)
        if UNLABELLED in verdict.recipe:
            denials = denials_of(proof.needed.get(UNLABELLED), bench.runs)
            rows += label_requirements(trace.observations, denials)
            safer = relabelling(bench, self.sandbox, verdict.recipe, denials)
            own = dataclasses.replace(own, advice=(*own.advice, *safer))
        return self.report(trace, rows, verdict, proof, own)

    def _narrowed(self, trace: Trace, called: Called, bench: Bench, verdict: Verdict) -> tuple[Trace, Verdict]:
        """The verdict with an allow-list of the observed calls; where there is none, a note in the trace says why."""
        recipe, service = verdict.recipe, service_again(self.options, trace)

        def watch() -> Called:
            again = self._traced(recipe, service, every_call=True).called
            assert again is not None
            return again

        found = observing.allow_list(self.sandbox, bench, recipe, called, watch, self.announce)
        if isinstance(found, str):
            trace = dataclasses.replace(trace, notes=(*trace.notes, f"no allow-list of the observed calls: {found}"))
            return trace, dataclasses.replace(verdict, runs=bench.runs)
        if self.sandbox.health_check() and not self.options.until_healthy:
            unseen = "the observed calls were not tried with the engine's health checks, which are confined, too"
            trace = dataclasses.replace(trace, notes=(*trace.notes, unseen))
        recipe |= {found.bound}
        return trace, dataclasses.replace(verdict, recipe=recipe, runs=bench.runs, observed=found)

    def _passing(
        self, trace: Trace, understanding: Understanding, bench: Bench, candidates: Sequence[Recipe]
    ) -> Recipe:
        """A recipe that passes. Where a filter shall stay, switching it off is none of the ways out."""
        investigate = functools.partial(self._denied, trace, understanding)
        guesses = (named(self.sandbox.command(), trace, self.facts.grantable), UNSEEN)
        try:
            return passing(
                bench,
                candidates,
                self._ways_out(),
                order=weight,
                investigate=investigate,
                guesses=guesses,
                deny=functools.partial(self._missing, trace, understanding) if len(self.facts.witnesses) > 1 else None,
                tells=lacks_by_label,
            )
        except UnverifiedError as error:
            if (lost := beyond_reach(trace)) is not None:
                raise UnverifiedError(
                    f"only --privileged itself makes {lost.path} writable, and without it the workload fails",
                    "it is the container's own network's: with --network host it is the host's, which can be mounted",
                ) from error
            if self.options.seccomp is Seccomp.UNCONFINED:
                raise
            if not bench.run(self.broad, "every privilege and no filter").passed:
                raise
            mend = "no profile opens them, as it seems: --seccomp unconfined does without a filter"
            if self.options.seccomp is Seccomp.DEFAULT:
                mend = "leave --seccomp default out: a profile then opens just these calls"
            raise UnverifiedError(
                "the engine's own seccomp filter denies calls without which the workload fails", mend
            ) from error

    def _ways_out(self) -> Recipe:
        """What may be added blindly where no witness sees what is missing: privileges, and calls to open one by one."""
        match self.options.seccomp:
            case Seccomp.UNCONFINED:
                return self.broad
            case Seccomp.DEFAULT:
                return self.broad - {UNCONFINED}
            case Seccomp.PROFILE | Seccomp.OBSERVED:
                return self.broad - {UNCONFINED} | {Syscalls((name,)) for name in self._denied_calls}

    def _with_optional(self, bench: Bench, understanding: Understanding, proved: Recipe) -> Recipe:
        """`proved` and what else was asked for, rerun; `proved` alone if the workload then fails, as some do."""
        recipe = proved | reduce(unmet(understanding.requirements, proved), weight, up_to=Doubt.DOUBTFUL)
        if bench.run(recipe, "with what is optional").passed:
            return recipe
        self.announce("what is optional is left out: with it the workload fails")
        return proved

    def _bench(self, trace: Trace, understanding: Understanding) -> Bench:
        options, strict = self.options, self.options.strict
        if options.compare_output:
            self.announce("running it once more with every privilege, for the output to compare with")
        return Bench(
            self.sandbox,
            acceptance(options, trace, self.sandbox, self.broad | mounts(understanding.requirements)),
            timeout=time_limit(options, trace),
            jobs=1 if options.check or strict else options.jobs,
            service=service_again(options, trace),
            examine=functools.partial(self._refused, trace, understanding) if strict else None,
            on_run=self._tell,
        )

    def _refused(self, trace: Trace, understanding: Understanding, recipe: Recipe) -> str | None:
        """Watch a run with `recipe`, which passes: the first call that is refused in it and had succeeded."""
        rows = unmet(understanding.requirements, recipe)
        bound = any(isinstance(p, AllowList) for p in recipe)  # no gate can be steered under it: watched without
        if not rows or bound:
            return None
        return divergence(rows, self._traced(recipe, service_again(self.options, trace), calls_of(rows)))

    def _missing(self, trace: Trace, understanding: Understanding, rerun: Rerun) -> Recipe:
        limit = time_limit(self.options, trace) * denying.SLOWER
        run = functools.partial(self._traced, self.broad, service_again(self.options, trace), timeout=limit)
        found, rows = denying.missing(
            self.sandbox, self.options, rerun.recipe, self.facts.grantable, run, self.announce
        )
        understanding.learn(rows, found - rerun.recipe)
        return found

    def _denied(self, trace: Trace, understanding: Understanding, rerun: Rerun) -> Recipe:
        self.announce("watching the failing run to see what it is denied")
        watched = self._traced(rerun.recipe, service_again(self.options, trace))
        rows = denied(watched, rerun.recipe, self.facts.grantable)
        found = reduce(rows, weight, up_to=Doubt.DOUBTFUL)
        understanding.learn(rows, found)
        return found | refused_without_check(watched.observations)

    def _proof(self, bench: Bench, recipe: Recipe, understanding: Understanding) -> Proof:
        if self.options.prove is Prove.NONE:
            return Proof(recipe, {}, ())
        until = time.monotonic() + self.options.prove_budget if self.options.prove is Prove.BUDGET else None
        return prove(bench, recipe, order=weight, until=until, hints=understanding.hints(recipe))

    def _told(self, trace: Trace, rows: Sequence[Requirement], proof: Proof) -> tuple[Requirement, ...]:
        def watch(member: Privilege, calls: frozenset[str]) -> Trace:
            self.announce(f"watching a run without {member.label} to see what it is denied")
            return self._traced(proof.recipe - {member}, service_again(self.options, trace), calls)

        return told(rows, proof, watch)

    def _tell(self, rerun: Rerun) -> None:
        labels = " ".join(sorted(p.label for p in rerun.recipe)) if len(rerun.recipe) <= 8 else "many privileges"
        outcome = rerun.outcome
        failed = f"failed with exit code {outcome.exit_code}"
        if outcome.timed_out and outcome.stopped is None:
            failed = "did not end in time"
        elif outcome.stopped is not None or outcome.exit_code == self.options.exit_code:
            failed = f"failed: {rerun.failure}"
        ended = "passed" if rerun.passed else failed
        self.announce(f"{rerun.purpose}: [{labels or 'no privilege'}] {ended} ({outcome.seconds:.1f} s)")

    def report(
        self,
        trace: Trace,
        rows: Sequence[Requirement],
        verdict: Verdict,
        proof: Proof,
        own: confining.Offer = confining.NOTHING,
    ) -> Report:
        """Everything that the manifest and the table say."""
        requirements = judged(rows, verdict, proof.needed)
        left_out = (r for r in requirements if r.status is Status.OPTIONAL and r.privilege not in verdict.kept)
        optional = {r.privilege: asked_for(r.requirement) for r in left_out}
        image, image_id = self.sandbox.image()
        if needs_profile(verdict.recipe):
            place = place_of(self.options.output)
            self.profiles.keep(verdict.recipe, place)
            self.sandbox.profile_path = str(place.absolute())
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
            safer=(
                *own.advice,
                *advice(
                    r.requirement
                    for r in requirements
                    if r.status is not Status.OPTIONAL and not isinstance(r.privilege, Sysctl)
                ),
            ),
            notes=(*self.sandbox.notes(), *trace.notes),
            warnings=self.sandbox.cautions(),
            less_confined=less_confined(trace.observations, unmet(rows, verdict.recipe)) if verdict.verified else {},
            apparmor=own.profile,
        )
