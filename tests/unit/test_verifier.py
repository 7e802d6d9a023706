"""Completing, proving and remembering, on a sandbox that only compares sets."""

import pytest

from profiler.errors import UnverifiedError
from profiler.model import Capability, Outcome, SecurityOption, Syscalls
from profiler.verifier.bench import Bench
from profiler.verifier.prove import Hints, prove
from profiler.verifier.refine import passing

ALL = frozenset(Capability(n) for n in "ABCDEFGHIJKLMNOP")


def caps(names):
    return frozenset(Capability(n) for n in names)


class Imagined:
    """Passes where the recipe holds one of `enough`."""

    def __init__(self, *enough, parallel=True):
        self.enough = [caps(names) for names in enough]
        self.ran = []
        self._parallel = parallel

    def rerun(self, recipe, *, timeout, slot=0, service=None):
        self.ran.append(recipe)
        return Outcome(0 if any(e <= recipe for e in self.enough) else 1, 0.0)

    def parallel(self):
        return self._parallel

    def abort(self):
        self.aborted = True


def accepts(outcome):
    return None if outcome.exit_code == 0 else f"exit code {outcome.exit_code}"


def order(privilege):
    return ord(privilege.name)


def bench_of(sandbox, jobs=1):
    return Bench(sandbox, accepts, timeout=None, jobs=jobs)


def nothing(rerun):
    return frozenset()


def test_the_lean_recipe_is_tried_first_and_suffices():
    sandbox = Imagined("A")
    recipe = passing(bench_of(sandbox), [caps("A"), caps("AB")], ALL, order=order, investigate=nothing)
    assert recipe == caps("A") and sandbox.ran == [caps("A")]


def test_a_failing_run_is_completed_by_what_it_was_denied():
    sandbox = Imagined("ABC")
    denied = {caps("A"): caps("B"), caps("AB"): caps("C")}
    recipe = passing(bench_of(sandbox), [caps("A")], ALL, order=order, investigate=lambda r: denied[r.recipe])
    assert recipe == caps("ABC") and len(sandbox.ran) == 3


@pytest.mark.parametrize("hidden", ["AB", "AP", "ABP", "AFGK"])
def test_what_no_witness_saw_is_found_by_halving(hidden):
    sandbox = Imagined(hidden)
    recipe = passing(bench_of(sandbox), [caps("A")], ALL, order=order, investigate=nothing)
    assert recipe == caps(hidden)
    assert len(sandbox.ran) <= 3 + 6 * len(hidden)


def test_a_guess_is_tried_before_halving():
    sandbox = Imagined("AM")
    found = passing(bench_of(sandbox), [caps("A")], ALL, order=order, investigate=nothing, guesses=[caps("KM")])
    assert found == caps("AKM") and len(sandbox.ran) == 2


def test_a_wrong_guess_costs_one_rerun():
    sandbox = Imagined("AP")
    found = passing(bench_of(sandbox), [caps("A")], ALL, order=order, investigate=nothing, guesses=[caps("B")])
    assert found == caps("AP") and len(sandbox.ran) <= 1 + 1 + 6


def test_a_guess_that_cannot_be_given_costs_nothing():
    sandbox = Imagined("AM")
    guesses = [frozenset({SecurityOption("apparmor=unconfined")}), caps("M")]
    found = passing(bench_of(sandbox), [caps("A")], ALL, order=order, investigate=nothing, guesses=guesses)
    assert found == caps("AM") and len(sandbox.ran) == 2


def test_a_workload_that_does_not_repeat_is_said_so():
    with pytest.raises(UnverifiedError, match="when it was run again"):
        passing(bench_of(Imagined()), [caps("A")], ALL, order=order, investigate=nothing)


@pytest.mark.parametrize("jobs", [1, 2])
def test_removal_keeps_what_is_needed_and_drops_the_rest(jobs):
    proof = prove(bench_of(Imagined("AC"), jobs), caps("ABCD"), order=order)
    assert proof.recipe == caps("AC") and set(proof.needed) == caps("AC") and set(proof.dropped) == caps("BD")
    assert proof.complete


def test_several_that_nobody_needs_are_dropped_together():
    sandbox = Imagined("AC")
    proof = prove(bench_of(sandbox), caps("ABCDEF"), order=order)
    assert proof.recipe == caps("AC") and proof.complete
    # F, E, D and B go one after the other, C does not; it is tried again without B, and all of what is left once more
    assert len(sandbox.ran) == 6 + 1 + 1
    assert sandbox.ran[-1] == caps("AC")


def test_what_is_doubtful_is_removed_together_and_first():
    sandbox = Imagined("AB")
    proof = prove(bench_of(sandbox), caps("ABCD"), order=order, hints=Hints(doubtful=caps("CD")))
    assert proof.recipe == caps("AB") and proof.complete
    assert [len(recipe) for recipe in sandbox.ran] == [2, 1, 1, 2]  # both at once, A, B, and what is left once more


def test_what_is_doubtful_and_needed_is_told_apart():
    sandbox = Imagined("ABC")
    proof = prove(bench_of(sandbox), caps("ABCD"), order=order, hints=Hints(doubtful=caps("CD")))
    assert proof.recipe == caps("ABC") and proof.complete
    # both, D alone, the rest, and what is left once more; C alone was removed with D
    assert len(sandbox.ran) == 1 + 1 + 2 + 1


def test_three_of_which_one_is_needed_are_told_apart():
    proof = prove(bench_of(Imagined("A", "B", "C")), caps("ABC"), order=order)
    assert proof.recipe == caps("A") and proof.complete


@pytest.mark.parametrize("hidden", ["AI", "AB", "ABEI", "ACDEFGHI", "AGH"])
def test_what_was_added_to_a_failing_recipe_is_removed_in_groups(hidden):
    sandbox = Imagined(hidden)
    bench = bench_of(sandbox)
    recipe = passing(bench, [caps("A"), caps("ABCDEFGHI")], ALL, order=order, investigate=nothing)
    proof = prove(bench, recipe, order=order)
    assert proof.recipe == caps(hidden) and proof.complete
    assert len(sandbox.ran) <= 2 + 3 * 8


class Racing(Imagined):
    """Passes the first time where the recipe holds `sometimes`, and always where it holds one of `enough`."""

    def __init__(self, sometimes, *enough):
        super().__init__(*enough)
        self.sometimes = caps(sometimes)

    def rerun(self, recipe, **_):
        first = recipe not in self.ran
        outcome = super().rerun(recipe, timeout=None)
        return Outcome(0, 0.0) if first and self.sometimes <= recipe else outcome


def test_what_passes_without_a_member_only_now_and_then_gets_it_back():
    proof = prove(bench_of(Racing("A", "AB")), caps("ABC"), order=order)
    assert proof.recipe == caps("AB") and proof.complete and proof.dropped == (Capability("C"),)


def test_what_was_needed_beside_less_is_not_needed_beside_more():
    """Without D both A and B were needed; with D back, one of them is not."""
    proof = prove(bench_of(Racing("AB", "AD", "BD")), caps("ABD"), order=order)
    assert proof.recipe == caps("AD") and proof.complete and proof.dropped == (Capability("B"),)


def test_groups_need_fewer_reruns_than_members():
    sandbox = Imagined("AC")
    bench = bench_of(sandbox)
    passing(bench, [caps("A"), caps("ABCDEFGHI")], ALL, order=order, investigate=nothing)
    assert prove(bench, caps("ABCDEFGHI"), order=order).recipe == caps("AC")
    assert len(sandbox.ran) <= 2 + 5 + 2 + 1


def test_a_stand_in_that_suffices_takes_the_members_place():
    sandbox = Imagined("AC", "BC")
    proof = prove(bench_of(sandbox), caps("BCD"), order=order, hints=Hints(instead={Capability("B"): caps("A")}))
    assert proof.recipe == caps("AC") and proof.complete and Capability("B") in proof.dropped


def test_a_stand_in_that_fails_proves_the_member_without_a_rerun_more():
    sandbox = Imagined("BC")
    proof = prove(bench_of(sandbox), caps("BC"), order=order, hints=Hints(instead={Capability("B"): caps("A")}))
    assert proof.recipe == caps("BC") and proof.complete
    assert len(sandbox.ran) == 2


def test_a_member_that_nobody_needs_needs_no_stand_in():
    proof = prove(bench_of(Imagined("C")), caps("BC"), order=order, hints=Hints(instead={Capability("B"): caps("A")}))
    assert proof.recipe == caps("C") and proof.complete


def test_two_that_stand_in_for_each_other_are_not_both_dropped():
    """Leave-one-out from the full set would drop DAC_READ_SEARCH and DAC_OVERRIDE: each alone is enough."""
    proof = prove(bench_of(Imagined("A", "B")), caps("AB"), order=order)
    assert proof.recipe == caps("A") and proof.dropped == (Capability("B"),) and proof.complete


def test_who_stays_who_it_was_needs_less_of_the_rest():
    """A script that goes on when its `su` is refused has no other user's process to kill either."""

    class Stays(Imagined):
        def rerun(self, recipe, **_):
            self.ran.append(recipe)
            changes = Capability("SETUID") in recipe
            return Outcome(1 if changes and Capability("KILL") not in recipe else 0, 0.0)

    sandbox = Stays()
    proof = prove(bench_of(sandbox), frozenset({Capability("SETUID"), Capability("KILL")}), order=lambda p: 1)
    assert proof.recipe == frozenset() and proof.complete and len(sandbox.ran) == 2 + 1


def test_who_goes_on_as_who_it_was_may_need_nothing_at_all():
    sandbox = Imagined("")
    recipe = frozenset(map(Capability, ["SETUID", "SETGID", "CHOWN", "MKNOD", "FOWNER"]))
    proof = prove(bench_of(sandbox), recipe, order=lambda p: 1)
    assert proof.recipe == frozenset() and proof.complete
    assert len(sandbox.ran) == 2 + 1 + 1  # SETUID, SETGID, everything, and nothing once more


@pytest.mark.parametrize(("hidden", "runs"), [("ABCD", 3 + 4 + 1), ("AH", 4 + 1 + 1)])
def test_what_one_call_asked_for_is_taken_apart_last(hidden, runs):
    sandbox = Imagined(hidden)
    bench = bench_of(sandbox)
    passing(bench, [caps("A"), caps("ABCDEFGH")], ALL, order=lambda p: 1, investigate=nothing)
    proof = prove(bench, caps("ABCDEFGH"), order=lambda p: 1, hints=Hints(together=(caps("BCD"), caps("AE"))))
    assert proof.recipe == caps(hidden) and proof.complete
    assert len(sandbox.ran) == 2 + runs


def test_filtered_calls_are_tried_before_what_is_sure():
    """Where buildah may not pivot_root it goes another way: nothing was to be proved again for that."""
    call, needed = Syscalls(("pivot_root",)), frozenset(map(Capability, ["SYS_ADMIN", "SETUID", "CHOWN"]))
    sandbox = Imagined()
    sandbox.enough = [needed]
    proof = prove(bench_of(sandbox), needed | {call}, order=lambda p: 1)
    assert proof.recipe == needed and proof.complete and len(sandbox.ran) == 1 + 3 + 1


def test_what_completed_a_failing_recipe_is_not_doubted_again():
    sandbox = Imagined("ABCD")
    bench = bench_of(sandbox)
    passing(
        bench,
        [caps("A")],
        ALL,
        order=order,
        investigate=lambda rerun: caps("BC") if len(rerun.recipe) < 3 else caps("D"),
    )
    proof = prove(bench, caps("ABCD"), order=order, hints=Hints(doubtful=caps("BC")))
    assert proof.recipe == caps("ABCD") and proof.complete and len(sandbox.ran) == 3 + 3


def test_no_time_left_proves_nothing_and_loses_nothing():
    proof = prove(bench_of(Imagined("A")), caps("AB"), order=order, until=0.0)
    assert proof.recipe == caps("AB") and not proof.complete


def test_the_same_recipe_is_never_run_twice():
    sandbox = Imagined("A")
    bench = bench_of(sandbox)
    assert bench.run(caps("A"), "verify") is bench.run(caps("A"), "again")
    assert len(sandbox.ran) == 1


def test_fixed_names_and_ports_allow_one_run_at_a_time():
    assert Bench(Imagined(parallel=False), accepts, timeout=None, jobs=4).jobs == 1


def test_what_ends_one_rerun_gives_the_others_up():
    class Broken(Imagined):
        def rerun(self, recipe, **_):
            raise KeyboardInterrupt

    sandbox = Broken()
    with pytest.raises(KeyboardInterrupt):
        Bench(sandbox, accepts, timeout=1, jobs=2).run_all({caps("A"): "one", caps("B"): "two"})
    assert sandbox.aborted


@pytest.mark.parametrize("parting", ["SYS_ADMIN", "KILL"])
def test_what_was_needed_on_the_way_not_taken_is_dropped(parting):
    """Without SYS_ADMIN buildah goes through a user namespace, and needs other privileges than with it."""
    fork, one_way, other_way = Capability(parting), caps("ABC"), caps("C")

    class Forking(Imagined):
        def rerun(self, recipe, **_):
            self.ran.append(recipe)
            return Outcome(0 if (one_way if fork in recipe else other_way) <= recipe else 1, 0.0)

    sandbox = Forking()
    proof = prove(bench_of(sandbox), one_way | other_way | {fork}, order=lambda p: 1)
    assert proof.recipe == other_way and proof.complete
    assert all(rerun.recipe == proof.recipe - {member} for member, rerun in proof.needed.items())


def test_what_time_is_too_short_to_try_again_was_seen_in_a_larger_set():
    now = [0.0]

    class Slow(Imagined):
        def rerun(self, recipe, **_):
            now[0] += 1
            return super().rerun(recipe, timeout=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("profiler.verifier.prove.time.monotonic", lambda: now[0])
        proof = prove(bench_of(Slow("AC")), caps("ABC"), order=order, until=3.5)
    assert proof.recipe == caps("AC") and proof.complete
