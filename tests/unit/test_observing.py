"""The allow-list of observed calls: what goes into it, and when there is none."""

from __future__ import annotations

import contextlib

import pytest

from profiler import observing
from profiler.catalogue.incidental import INCIDENTAL, INCIDENTAL_I386
from profiler.errors import HostError
from profiler.kernel import bpf
from profiler.model import AllowList, Called, Capability, Outcome, Syscalls
from profiler.verifier.bench import Bench
from profiler.witness.filter import numbers

KEYCTL = Syscalls(("keyctl",))
DENIES = bpf.assemble([bpf.Rule(numbers("x86_64")[name]) for name in ("mount", "keyctl")], action=bpf.RET_ERRNO | 1)
# The same, and umount(2) of the 32-bit table.
DENIES_32 = bpf.assemble(
    [bpf.Rule(numbers("x86_64")[name]) for name in ("mount", "keyctl")],
    action=bpf.RET_ERRNO | 1,
    foreign_numbers=frozenset({numbers("i386")["umount"]}),
)


class Imagined:
    """Passes where the allow-list holds `needed`, or where there is none."""

    def __init__(self, *needed, program=DENIES):
        self.needed = set(needed)
        self.program = program
        self.lists = []

    def filter_of(self, capabilities):
        return self.program

    def parallel(self):
        return False

    def rerun(self, recipe, *, timeout, slot=0, service=None):
        lists = [p.names for p in recipe if isinstance(p, AllowList)]
        self.lists += lists
        return Outcome(0 if all(self.needed <= set(names) for names in lists) else 3, 0.0)


@pytest.fixture
def found(monkeypatch):
    """`allow_list` for a workload that shows these calls in its first and in each later watched run."""

    def allow_list(sandbox, first, *later, recipe=frozenset(), runtime=frozenset({"capset"})):
        monkeypatch.setattr(observing, "runtime_calls", lambda *given: runtime)
        bench = Bench(sandbox, lambda outcome: f"code {outcome.exit_code}" if outcome.exit_code else None, timeout=None)
        runs = iter(later)
        return observing.allow_list(sandbox, bench, recipe, first, lambda: next(runs), lambda line: None)

    return allow_list


def called(*names, **more):
    return Called(dict.fromkeys(names, "/bin/x"), **more)


def test_it_holds_the_workloads_the_runtimes_and_what_timing_decides(found):
    sandbox = Imagined("openat", "capset")
    observed = found(sandbox, called("openat", "clone3"), called("openat", "clone"))
    assert observed.workload.keys() == {"openat", "clone3", "clone"}
    assert observed.runtime == ("capset",)
    assert set(observed.names) == {"openat", "clone3", "clone", "capset", *INCIDENTAL}
    assert sandbox.lists == [observed.names]


def test_what_the_recipes_own_profile_denies_is_left_out(found):
    observed = found(Imagined(), called("openat", "mount", "keyctl"), called(), recipe=frozenset({KEYCTL}))
    assert observed.workload.keys() == {"openat", "keyctl"}


def test_a_run_that_shows_more_mends_a_list_that_fails(found):
    sandbox = Imagined("statx")
    observed = found(sandbox, called("openat"), called("openat"), called("statx"))
    assert {"openat", "statx"} <= observed.workload.keys()
    assert len(sandbox.lists) == 2


def test_a_list_that_fails_is_not_used(found):
    sandbox = Imagined("statx")
    assert "does not pass: code 3" in found(sandbox, called("openat"), called("openat"), called("openat"))
    assert len(sandbox.lists) == 1


def test_losses_and_other_tables_are_told(found):
    lossy = called("openat", lost=7)
    sandbox = Imagined("openat")
    assert found(sandbox, called("openat"), lossy, called("openat")).workload.keys() == {"openat"}
    assert found(sandbox, called("openat"), lossy, lossy, lossy) == "7 events of system calls were lost"
    assert "x32" in found(sandbox, called("openat", foreign=True), called("openat"))
    assert "could not be seen" in found(sandbox, called("openat"), runtime=None)


def test_runs_are_merged():
    assert observing.merged([None, None]) is None
    both = observing.merged([Called({"a": "", "b": "/x"}, 1), None, Called({"a": "/y", "b": "/z"}, 2, True)])
    assert both == Called({"a": "/y", "b": "/x"}, 3, True)
    both = observing.merged([Called({}, i386={"a": "/x"}), Called({}, i386={"a": "/y", "b": "/z"})])
    assert both == Called({}, i386={"a": "/x", "b": "/z"})


def test_32_bit_programs_have_names_of_their_own(found):
    sandbox = Imagined("mmap2", program=DENIES_32)
    observed = found(sandbox, called("openat", i386={"stat64": "/bin/y", "umount": "/bin/y"}), called("openat"))
    assert observed.i386 == {"stat64": "/bin/y"}
    assert set(observed.names) == {"openat", "stat64", "capset", *INCIDENTAL, *INCIDENTAL_I386}
    assert observed.bound == AllowList(observed.names, True)
    assert not found(Imagined(program=DENIES_32), called("openat"), called("openat")).bound.i386


def test_an_engine_without_a_filter_has_none_to_narrow(monkeypatch):
    monkeypatch.setattr(observing, "Recording", lambda *events: contextlib.nullcontext())
    with pytest.raises(HostError, match="installs no seccomp filter"):
        observing.check_possible(Imagined(program=None))
    observing.check_possible(Imagined())


def test_the_incidental_calls_are_calls_and_no_privileges():
    assert INCIDENTAL.keys() <= numbers("x86_64").keys()
    assert INCIDENTAL_I386.keys() <= numbers("i386").keys() - INCIDENTAL.keys()
    assert all(why and not why.endswith(".") for why in INCIDENTAL.values())
    assert Capability("SYS_ADMIN") not in {AllowList(())}
