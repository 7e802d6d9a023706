"""The ledger's joins and bounds, fed by hand."""

import errno
import threading
import time
import tracemalloc

from profiler.model import KernelCheck, Process
from profiler.tracer.ledger import Ledger
from profiler.witness.events import Accounting, Check, CheckKind, Exec, Exit, Fork, TaskExit

NOBODY = 4_190_000  # above the usual pid_max of a test machine: /proc has nothing of it
SH = Process(NOBODY, "/bin/sh", ("sh", "-c", "x"), 0)
CHOWN = CheckKind(KernelCheck("CHOWN", True, "setattr_prepare"), "chown")
FSETID = CheckKind(KernelCheck("FSETID", True, "setattr_copy"), "chown")
READ = CheckKind(KernelCheck("DAC_READ_SEARCH", True, "generic_permission"), "openat")
NOWHERE = CheckKind(KernelCheck("SYS_ADMIN", True, "somewhere"), None)
MEMORY = CheckKind(KernelCheck("SYS_ADMIN", True, "security_vm_enough_memory_mm"), "mmap", accounting=True)


def chown(ledger, time_ns, *args, pid=NOBODY, name="chown", path="/f"):
    ledger.call(pid, time_ns, name, args, path, SH)


def seen(ledger):
    return [
        (one.call, one.args, one.result, tuple(check.capability for check in one.checks), one.count)
        for one in ledger.finish()[0]
    ]


def test_a_call_gets_its_checks_and_its_result():
    ledger = Ledger()
    chown(ledger, 10, "1")
    ledger.feed(
        [Check(11, NOBODY, CHOWN), Check(12, NOBODY, FSETID), Check(12, NOBODY, CHOWN), Exit(13, NOBODY, "chown", 0)]
    )
    (one,), processes = ledger.finish()
    assert (one.call, one.args, one.path, one.result, one.count) == ("chown", ("1",), "/f", 0, 1)
    assert one.checks == (CHOWN.check, FSETID.check)
    assert one.process == SH
    assert processes == 1


def test_the_listener_may_be_calls_ahead_of_the_witness():
    ledger = Ledger()
    chown(ledger, 10, "1")
    chown(ledger, 20, "2")
    chown(ledger, 30, "3", name="mount")
    ledger.feed([Check(11, NOBODY, CHOWN), Exit(15, NOBODY, "chown", -1)])
    ledger.feed([Check(21, NOBODY, CHOWN), Exit(25, NOBODY, "chown", 0), Exit(35, NOBODY, "mount", -16)])
    assert seen(ledger) == [
        ("chown", ("1",), -1, ("CHOWN",), 1),
        ("chown", ("2",), 0, ("CHOWN",), 1),
        ("mount", ("3",), -16, (), 1),
    ]


def test_a_check_in_another_call_is_counted_on_its_own():
    ledger = Ledger()
    ledger.feed([Check(5, NOBODY, READ), Check(6, NOBODY, READ)])
    chown(ledger, 10, "1")
    ledger.feed(
        [Check(11, NOBODY, READ), Check(12, NOBODY, NOWHERE), Exit(13, NOBODY, "chown", 0), Check(14, NOBODY, NOWHERE)]
    )
    assert seen(ledger) == [
        ("openat", (), None, ("DAC_READ_SEARCH",), 2),
        ("openat", (), None, ("DAC_READ_SEARCH",), 1),
        ("chown", ("1",), 0, ("SYS_ADMIN",), 1),
        (None, (), None, ("SYS_ADMIN",), 1),
    ]


def test_an_exit_from_before_the_call_or_of_another_call_is_not_its_result():
    ledger = Ledger()
    chown(ledger, 10, "1")
    ledger.feed([Exit(9, NOBODY, "chown", -1), Exit(11, NOBODY, "openat", 3), Exit(12, NOBODY, "chown", 0)])
    assert seen(ledger) == [("chown", ("1",), 0, (), 1)]


def test_a_call_without_an_exit_event_ends_with_the_next_one():
    ledger = Ledger()
    chown(ledger, 10, "1")
    chown(ledger, 20, "2")
    ledger.feed([Check(11, NOBODY, CHOWN), Check(21, NOBODY, CHOWN), Exit(22, NOBODY, "chown", 0)])
    assert seen(ledger) == [("chown", ("1",), None, ("CHOWN",), 1), ("chown", ("2",), 0, ("CHOWN",), 1)]


def test_a_call_that_the_kernel_does_not_have_has_failed():
    ledger = Ledger(absent={"chown"})
    chown(ledger, 10, "1")
    assert seen(ledger) == [("chown", ("1",), -errno.ENOSYS, (), 1)]


def test_exec_has_succeeded_when_another_program_runs():
    ledger = Ledger()
    chown(ledger, 10, "/bin/true", name="execve")
    ledger.feed([Exec(11, NOBODY, NOBODY, "/bin/true"), Exit(12, NOBODY, "execve", 0)])
    chown(ledger, 20, "/bin/false", pid=NOBODY + 1, name="execveat")  # a thread's, which takes its leader's pid
    ledger.feed([Exec(21, NOBODY, NOBODY + 1, "/bin/false")])
    assert [one[:3] for one in seen(ledger)] == [("execve", ("/bin/true",), 0), ("execveat", ("/bin/false",), 0)]


PROGRAM = CheckKind(
    KernelCheck("DAC_OVERRIDE", True, "generic_permission", ("generic_permission", "may_open.isra.0", "path_openat")),
    "execve",
)
WAY = CheckKind(
    KernelCheck("DAC_READ_SEARCH", True, "generic_permission", ("generic_permission", "link_path_walk")), "execve"
)


def test_a_check_on_a_program_that_was_not_stopped_is_told_by_what_runs_then():
    ledger = Ledger()
    ledger.feed([Check(10, NOBODY, WAY), Check(11, NOBODY, PROGRAM), Exec(12, NOBODY, NOBODY, "/bin/mine")])
    assert seen(ledger) == [
        ("execve", (), None, ("DAC_READ_SEARCH",), 1),
        ("execve", ('"/bin/mine"',), 0, ("DAC_OVERRIDE",), 1),
    ]


def test_of_a_program_that_does_not_run_nothing_is_told():
    for ending in ([], [TaskExit(12, NOBODY)], [Check(12, NOBODY, READ), Exec(13, NOBODY, NOBODY, "/bin/other")]):
        ledger = Ledger()
        ledger.feed([Check(11, NOBODY, PROGRAM), *ending])
        assert seen(ledger)[0] == ("execve", (), None, ("DAC_OVERRIDE",), 1)
    ledger = Ledger()
    ledger.feed([Check(10, NOBODY, PROGRAM), Check(11, NOBODY, PROGRAM), Exec(12, NOBODY, NOBODY, "/bin/mine")])
    assert [one[1] for one in seen(ledger)] == [(), ('"/bin/mine"',)]


def test_a_call_of_a_task_that_is_killed_has_no_result():
    ledger = Ledger()
    chown(ledger, 10, "1")
    ledger.feed([Check(11, NOBODY, CHOWN), TaskExit(12, NOBODY)])
    assert seen(ledger) == [("chown", ("1",), None, ("CHOWN",), 1)]


def test_a_call_that_starts_again_is_counted_once():
    ledger = Ledger()
    chown(ledger, 10, "1")
    chown(ledger, 20, "1")
    ledger.feed([Exit(15, NOBODY, "chown", -512), Exit(25, NOBODY, "chown", 0)])
    assert seen(ledger) == [("chown", ("1",), 0, (), 1)]


def test_successes_are_one_whatever_number_they_returned_and_errors_are_not():
    ledger = Ledger()
    for at, result in enumerate((3, 4, -13, -1, 5, -13)):
        chown(ledger, at * 10 + 1, "1")
        ledger.feed([Exit(at * 10 + 2, NOBODY, "chown", result)])
    assert [(one[2], one[4]) for one in seen(ledger)] == [(3, 3), (-13, 2), (-1, 1)]


def test_memory_accounting_is_one_observation():
    ledger = Ledger()
    ledger.feed([Accounting(1, 1000, MEMORY), Check(2, NOBODY, MEMORY), Accounting(3, 10, MEMORY)])
    assert ledger.accounting == 1011
    assert seen(ledger) == [(None, (), None, ("SYS_ADMIN",), 1011)]


def test_a_process_is_known_by_its_last_exec_and_its_parents():
    ledger = Ledger(gate=NOBODY)
    ledger.feed(
        [
            Exec(1, NOBODY, NOBODY, "/bin/make"),
            Fork(2, NOBODY, NOBODY + 1, False),
            Exec(3, NOBODY + 1, NOBODY + 1, "/bin/sh"),
            Fork(4, NOBODY + 1, NOBODY + 2, False),
            Exec(5, NOBODY + 2, NOBODY + 2, "/bin/cat"),
            Fork(6, NOBODY + 2, NOBODY + 3, True),
            Check(7, NOBODY + 3, READ),
        ]
    )
    (one,), processes = ledger.finish()
    assert one.process == Process(NOBODY + 3, "/bin/cat", (), -1, ("/bin/sh", "/bin/make"))
    assert processes == 3


def test_what_the_listener_says_is_kept_and_its_chain_completed():
    ledger = Ledger(gate=NOBODY)
    ledger.feed([Exec(1, NOBODY, NOBODY, "/bin/make"), Fork(2, NOBODY, NOBODY + 1, False)])
    told = Process(NOBODY + 1, "/bin/busybox", ("sh",), 33)
    ledger.call(NOBODY + 1, 10, "mount", (), None, told)
    ledger.feed([Exec(3, NOBODY + 1, NOBODY + 1, "/bin/sh"), Check(12, NOBODY + 1, READ)])
    observations, _ = ledger.finish()
    expected = Process(NOBODY + 1, "/bin/busybox", ("sh",), 33, ("/bin/make",))
    assert [one.process for one in observations] == [expected, expected]


def test_a_reused_pid_is_a_new_process_and_ends_no_newer_call():
    ledger = Ledger(gate=NOBODY)
    ledger.feed([Fork(2, NOBODY, NOBODY + 1, False), Exec(3, NOBODY + 1, NOBODY + 1, "/bin/old")])
    ledger.call(NOBODY + 1, 10, "mount", ("old",), None, Process(NOBODY + 1, "/bin/old"))
    ledger.call(NOBODY + 1, 30, "mount", ("new",), None, Process(NOBODY + 1, "/bin/new"))
    ledger.feed([TaskExit(20, NOBODY + 1), Fork(25, NOBODY, NOBODY + 1, False), Exit(31, NOBODY + 1, "mount", 0)])
    found = [(one.args, one.result, one.process.exe) for one in ledger.finish()[0]]
    assert found == [(("old",), None, "/bin/old"), (("new",), 0, "/bin/new")]


def test_many_examples_of_one_kind_are_merged_into_one():
    ledger = Ledger(examples=4)
    for number in range(100):
        chown(ledger, number * 10, str(number))
        ledger.feed([Check(number * 10 + 1, NOBODY, CHOWN), Exit(number * 10 + 2, NOBODY, "chown", 0)])
    found = seen(ledger)
    assert [(one[1], one[4]) for one in found] == [(("0",), 1), (("1",), 1), (("2",), 1), (("3",), 1), (("4",), 96)]


def test_a_full_ledger_merges_across_programs():
    ledger = Ledger(examples=4, entries=8)
    for number in range(1000):
        ledger.call(NOBODY, number * 10, "chown", (), None, Process(NOBODY, f"/bin/{number}"))
        ledger.feed([Exit(number * 10 + 2, NOBODY, "chown", 0)])
    found = ledger.finish()[0]
    assert len(found) == 11
    assert sum(one.count for one in found) == 1000


def test_a_hundred_thousand_calls_stay_small():
    ledger = Ledger()
    tracemalloc.start()
    started = time.process_time()
    for number in range(0, 100_000, 100):
        events = []
        for at in range(number * 10, number * 10 + 1000, 10):
            ledger.call(NOBODY, at, "chown", (f"/some/path/{at}", "0", "0"), f"/some/path/{at}", SH)
            events += [Check(at + 1, NOBODY, CHOWN), Exit(at + 2, NOBODY, "chown", 0)]
        ledger.feed(events)
    seconds = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found = ledger.finish()[0]
    print(f"{seconds * 10:.1f} us a call with tracemalloc, peak {peak / 1024:.0f} KiB")
    assert sum(one.count for one in found) == 100_000
    assert len(found) == 65
    assert peak < 4 << 20


def test_two_threads_may_use_it():
    ledger = Ledger()
    stamps = iter(range(10, 10_000, 10))
    done = []

    def listen():
        for at in range(10, 10_000, 10):
            chown(ledger, at, "1")
            done.append(at)

    thread = threading.Thread(target=listen)
    thread.start()
    for at in stamps:
        deadline = time.monotonic() + 10
        while len(done) * 10 < at:
            assert time.monotonic() < deadline
        ledger.feed([Check(at + 1, NOBODY, CHOWN), Exit(at + 2, NOBODY, "chown", 0)])
    thread.join()
    assert seen(ledger) == [("chown", ("1",), 0, ("CHOWN",), 999)]
