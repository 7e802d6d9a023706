"""Denied runs without a kernel: how sets follow calls, what a denied trace means, and when a recipe is completed so."""

from __future__ import annotations

import pytest
from test_verifier import Imagined, bench_of, caps, nothing, order

from profiler.catalogue.calls import catalogue, number_of
from profiler.catalogue.quiet import QUIET
from profiler.errors import UsageError
from profiler.kernel.bpf import AUDIT_ARCH_X86_64, RET_ALLOW, RET_TRACE, assemble, interpret
from profiler.kernel.capabilities import Held, capset_arguments, mask
from profiler.kernel.overseer import Call
from profiler.model import Denial, Doubt, KernelCheck, Observation, Process, Refusal, Trace
from profiler.options import Options, Seccomp, Tracer
from profiler.synthesizer.denials import requirements_of
from profiler.synthesizer.pools import Pools
from profiler.tracer.denial.openers import Openers, confines
from profiler.tracer.denial.sets import FILE_SYSTEM, TaskSets
from profiler.verifier.refine import passing

ALL = mask(("CHOWN", "DAC_OVERRIDE", "SETUID", "SYS_ADMIN", "NET_RAW"))
PROGRAM = Process(7, "/usr/bin/program")
GRANTABLE = frozenset({"SYS_ADMIN", "FSETID", "CHOWN", "NET_ADMIN"})


def task(**more: object) -> TaskSets:
    return TaskSets(**{"process": 7, "euid": 0, "fsuid": 0, "virtual": ALL, "actual": 0, **more})  # type: ignore[arg-type]


def held(euid: int, fsuid: int | None = None, effective: int = 0, permitted: int = ALL) -> Held:
    return Held(7, euid, euid if fsuid is None else fsuid, effective, permitted, 0)


def test_capset_gets_the_words_of_two_halves():
    words = capset_arguments(1 << 40 | 1, 2, 3)
    halves = ("01000000 02000000 03000000", "00010000 00000000 00000000")
    assert words == bytes.fromhex("22050820 00000000" + "".join(halves))


def test_who_takes_a_users_id_has_nothing_in_effect_any_more():
    state = task()
    state.took_ids(held(1000), root=0)
    assert state.virtual == 0


def test_who_becomes_root_again_has_what_is_permitted():
    state = task(euid=1000, fsuid=1000, virtual=0)
    state.took_ids(held(0, effective=ALL), root=0)
    assert (state.virtual, state.actual) == (ALL, ALL)


def test_with_no_setuid_fixup_the_sets_stay():
    state = task(fixed=True)
    state.took_ids(held(1000), root=0)
    assert state.virtual == ALL


def test_another_file_system_id_takes_what_is_of_files():
    state = task()
    state.took_ids(held(0, 1000), root=0)
    assert state.virtual == ALL & ~FILE_SYSTEM
    state.took_ids(held(0, 0), root=0)
    assert state.virtual == ALL


def test_the_super_user_of_a_mapped_namespace_has_another_number():
    state = task(euid=100000, fsuid=100000)
    state.took_ids(held(101000), root=100000)
    assert state.virtual == 0


def test_an_executed_program_begins_with_what_the_kernel_gives_it():
    state = task(scratch=0x1000, once=1, alone=False)
    state.executed(held(0, effective=ALL))
    assert (state.virtual, state.actual, state.scratch, state.once) == (ALL, ALL, 0, 0)


def call(name: str, *args: int) -> Call:
    number = number_of(name)
    assert number is not None
    return Call(number, AUDIT_ARCH_X86_64, (*args, *(0,) * (6 - len(args))))


@pytest.mark.parametrize(
    ("made", "asks"),
    [
        (call("socket", 16, 3, 0), True),
        (call("socket", 2, 3, 0), False),
        (call("sendto", 3), False),  # no netlink socket is known
        (call("io_uring_enter", 3), True),
        (call("unshare", 0x10000000), True),
        (call("unshare", 0x20000), False),
        (call("seccomp", 1), True),
        (call("prctl", 22, 2), True),
        (call("prctl", 15), False),
        (call("chown"), False),
    ],
)
def test_only_what_is_asked_of_openers_runs_with_everything(made, asks):
    assert Openers().asks(1 << 22, made) is asks


def test_asking_for_an_action_confines_nobody():
    assert not confines(call("seccomp", 2))


def check(name: str, site: str, granted: bool = False) -> KernelCheck:
    return KernelCheck(name, granted, site, (site,))


def trace(*observations: Observation, denial: Denial | None) -> Trace:
    return Trace(observations, (), (), {}, 0, 1.0, denial=denial)


def rows_of(traced: Trace) -> dict[str, Doubt]:
    rows = requirements_of(traced, GRANTABLE, Pools({}), confined=False)
    return {privilege.label: row.doubt for row in rows for a in row.alternatives for privilege in a}


def test_what_was_refused_and_then_given_is_needed():
    refused = Observation("mount", ('"t"',), -1, "/mnt", PROGRAM, (check("SYS_ADMIN", "path_mount"),))
    traced = trace(denial=Denial((Refusal("SYS_ADMIN", refused, 0),), frozenset()))
    assert rows_of(traced) == {"SYS_ADMIN": Doubt.CERTAIN}
    (row,) = requirements_of(traced, GRANTABLE, Pools({}), confined=False)
    assert row.evidence == (refused,)


def test_what_fails_otherwise_with_the_capability_is_in_doubt():
    refused = Observation("mount", (), -1, "/mnt", PROGRAM, (check("SYS_ADMIN", "path_mount"),))
    assert rows_of(trace(denial=Denial((Refusal("SYS_ADMIN", refused, -2),), frozenset()))) == {
        "SYS_ADMIN": Doubt.DOUBTFUL
    }


def test_what_was_refused_in_a_call_that_succeeded_is_in_doubt():
    silent = check("FSETID", "setattr_copy")
    observed = Observation("chmod", ('"f"', "02755"), 0, "/f", PROGRAM, (silent,))
    assert rows_of(trace(observed, denial=Denial((), frozenset({silent})))) == {"FSETID": Doubt.DOUBTFUL}
    assert rows_of(trace(observed, denial=Denial((), frozenset()))) == {}


def test_what_was_granted_for_a_socket_that_remembers_its_opener_counts_as_in_any_trace():
    observed = Observation("sendmsg", (), 32, None, PROGRAM, (check("NET_ADMIN", "rtnetlink_rcv_msg", granted=True),))
    assert rows_of(trace(observed, denial=Denial((), frozenset()))) == {"NET_ADMIN": Doubt.LIKELY}


def test_a_denied_run_completes_a_recipe_where_much_is_in_doubt():
    sandbox = Imagined("AB")
    found = passing(
        bench_of(sandbox), [caps("A"), caps("ABCDEF")], caps("ABCDEFGH"), order=order, investigate=nothing,
        deny=lambda rerun: caps("AB"),
    )  # fmt: skip
    assert found == caps("AB")
    assert sandbox.ran == [caps("A"), caps("AB")]


def test_what_little_is_in_doubt_is_tried_first():
    sandbox = Imagined("AB")
    found = passing(
        bench_of(sandbox), [caps("A"), caps("ABC")], caps("ABCDEFGH"), order=order, investigate=nothing,
        deny=lambda rerun: pytest.fail("not needed"),
    )  # fmt: skip
    assert found == caps("ABC")


def test_a_denied_run_that_finds_nothing_leaves_it_to_the_other_ways():
    sandbox = Imagined("AF")
    found = passing(
        bench_of(sandbox), [caps("A"), caps("ABCDE")], caps("ABCDEFGH"), order=order,
        investigate=lambda rerun: caps("F"), deny=lambda rerun: caps(""),
    )  # fmt: skip
    assert found >= caps("AF")


def test_a_denied_run_is_made_once_and_last_where_there_is_no_other_candidate():
    sandbox, denied = Imagined("AZ"), []
    passing(
        bench_of(sandbox), [caps("A")], caps("ABCZ"), order=order, investigate=nothing,
        deny=lambda rerun: denied.append(rerun.recipe) or caps("B"),
    )  # fmt: skip
    assert denied == [caps("A")]


def test_an_allow_list_is_not_watched_for_in_a_denied_run():
    with pytest.raises(UsageError, match="--tracer deny"):
        Options(tracer=Tracer.DENY, seccomp=Seccomp.OBSERVED)


def test_a_denied_run_stops_at_every_call_but_the_quiet_ones():
    program = assemble(catalogue().stopping_rules(frozenset({"clock_gettime"})), action=RET_TRACE)

    def answer(made: Call) -> int:
        return interpret(program, made.number, made.args)

    for made in (call("mount"), call("read"), call("openat"), call("clock_gettime"), call("io_uring_enter")):
        assert answer(made) == RET_TRACE
    assert answer(call("futex")) == answer(call("exit_group")) == RET_ALLOW
    assert answer(call("mmap", 0, 4096, 3, 0x22)) == RET_ALLOW
    assert answer(call("mmap", 0, 4096, 3, 0x22 | 0x2000)) == RET_TRACE  # MAP_LOCKED asks for IPC_LOCK


def test_every_quiet_call_is_a_call():
    assert {name for name in QUIET if number_of(name) is None} == set()
