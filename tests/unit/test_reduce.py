"""The least dangerous set that meets every requirement."""

from hypothesis import given
from hypothesis import strategies as st

from profiler.model import Capability, Doubt, Observation, Process, Requirement
from profiler.synthesizer.reduce import asked_together, doubted, meets, reduce, stand_ins

NAMES = ["A", "B", "C", "D", "E"]
WEIGHTS = {"A": 1, "B": 2, "C": 3, "D": 5, "E": 9}


def weight(privilege):
    return WEIGHTS[privilege.name]


def need(*alternatives, doubt=Doubt.LIKELY):
    return Requirement(tuple(frozenset(Capability(n) for n in names) for names in alternatives), "", doubt)


def names(recipe):
    return sorted(p.name for p in recipe)


def test_a_single_alternative_is_taken():
    assert names(reduce([need("E")], weight, up_to=Doubt.LIKELY)) == ["E"]


def test_the_lighter_alternative_is_taken():
    assert names(reduce([need("B", "A")], weight, up_to=Doubt.LIKELY)) == ["A"]


def test_a_forced_member_serves_where_it_is_an_alternative():
    """DAC_OVERRIDE that is needed for a write also reads: DAC_READ_SEARCH is not added."""
    assert names(reduce([need("A", "D"), need("D")], weight, up_to=Doubt.LIKELY)) == ["D"]


def test_a_member_is_doubted_that_nothing_sure_asks_for():
    rows = [need("A", doubt=Doubt.EVEN), need("A", "B"), need("C", doubt=Doubt.EVEN), need("D"), need("E")]
    assert names(doubted(rows, frozenset(map(Capability, "BCD")))) == ["C"]
    assert names(doubted(rows, frozenset(map(Capability, "ACD")))) == ["C"]


def test_what_the_same_calls_asked_for_belongs_together():
    capset = Observation("capset", (), 0, None, Process(1, "/usr/bin/crun"))
    kill = Observation("kill", (), 0, None, Process(1, "/usr/bin/crun"))

    def row(name, *evidence):
        return Requirement((frozenset({Capability(name)}),), "", Doubt.DOUBTFUL, evidence)

    rows = [row("A", capset), row("B", capset), row("C", kill, capset), row("D", kill), row("E", capset)]
    assert [names(group) for group in asked_together(rows, frozenset(map(Capability, "ABCD")))] == [["A", "B"]]


def test_a_forced_member_has_a_lighter_stand_in_where_it_is_an_alternative():
    rows = [need("A", "D"), need("D"), need("B", "C"), need("C", "E")]
    found = stand_ins(rows, frozenset({Capability("D"), Capability("B"), Capability("C")}), weight)
    assert found == {Capability("D"): frozenset({Capability("A")})}


def test_one_heavier_member_may_be_lighter_than_two():
    assert names(reduce([need("B", "C"), need("A", "C"), need("B", "D")], weight, up_to=Doubt.LIKELY)) == ["A", "B"]


def test_what_is_doubtful_stays_out():
    assert names(reduce([need("A"), need("B", doubt=Doubt.DOUBTFUL)], weight, up_to=Doubt.LIKELY)) == ["A"]


def test_nothing_needs_nothing():
    assert reduce([], weight, up_to=Doubt.DOUBTFUL) == frozenset()


sets = st.frozensets(st.sampled_from(NAMES), min_size=1, max_size=2)


@given(st.lists(st.lists(sets, min_size=1, max_size=3), max_size=5))
def test_the_answer_meets_every_requirement_and_is_no_heavier_than_any_other(choices):
    requirements = [need(*alternatives) for alternatives in choices]
    recipe = reduce(requirements, weight, up_to=Doubt.LIKELY)
    assert all(meets(recipe, requirement) for requirement in requirements)
    forced = {n for alternatives in choices if len(alternatives) == 1 for n in alternatives[0]}
    for mask in range(1 << len(NAMES)):
        other = {n for i, n in enumerate(NAMES) if mask >> i & 1}
        if forced <= other and all(any(a <= other for a in alternatives) for alternatives in choices):
            assert sum(WEIGHTS[n] for n in names(recipe)) <= sum(WEIGHTS[n] for n in other)
