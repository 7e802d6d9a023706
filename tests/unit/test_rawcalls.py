"""Counting calls as a filter sees them."""

from __future__ import annotations

import errno

from profiler.model import Process, RawCall
from profiler.tracer.calls import DecodedCall
from profiler.tracer.rawcalls import DISTINCT, RawCalls
from profiler.witness.events import Exit, Fork, TaskExit

WHO = Process(5, "/bin/x")
POINTER = 0x7FFC_0000_1000


def registers(*values: int) -> tuple[int, int, int, int, int, int]:
    padded = (*values, 0, 0, 0, 0, 0, 0)[:6]
    return padded[0], padded[1], padded[2], padded[3], padded[4], padded[5]


def named(name: str) -> DecodedCall:
    return DecodedCall(name, (), None)


def test_addresses_are_left_out_and_negative_numbers_kept() -> None:
    raw = RawCalls()
    for pointer in (POINTER, POINTER + 64):
        raw.call(
            5, DecodedCall("mount", ('"/a"',), "/a"), 165, registers(pointer, (1 << 64) - 1, 2), time_ns=10, process=WHO
        )
    assert raw.finish() == (RawCall("mount", 165, registers(0, (1 << 64) - 1, 2), WHO, None, 2, ('"/a"',), "/a"),)
    assert raw.total == 2


def test_results_come_from_the_ends_of_calls_and_a_success_outweighs_failures() -> None:
    raw = RawCalls()
    raw.call(5, named("kill"), 62, registers(1), time_ns=10, process=WHO)
    raw.call(5, named("kill"), 62, registers(1), time_ns=20, process=WHO)
    raw.call(6, named("kill"), 62, registers(2), time_ns=20, process=WHO)
    raw.feed([Fork(1, 5, 6, False), Exit(5, 5, "kill", -1), Exit(12, 5, "kill", 0), Exit(22, 5, "kill", -3)])
    raw.feed([Exit(23, 6, "chown", 0), Exit(24, 6, "kill", -512), Exit(25, 9, "kill", 0)])
    assert [(call.args[0], call.result, call.count) for call in raw.finish()] == [(1, 0, 2), (2, None, 1)]


def test_a_call_that_the_kernel_does_not_have_has_failed() -> None:
    raw = RawCalls(absent={"init_module"})
    raw.call(1, named("init_module"), 175, registers(), time_ns=10, process=WHO)
    assert [call.result for call in raw.finish()] == [-errno.ENOSYS]
    assert 1 not in raw.awaiting


def test_a_thread_that_ended_owes_no_result() -> None:
    raw = RawCalls()
    raw.call(5, named("kill"), 62, registers(1), time_ns=10, process=WHO)
    raw.feed([TaskExit(11, 5), Exit(12, 5, "kill", 0)])
    assert raw.finish()[0].result is None


def test_many_arguments_become_one_entry() -> None:
    raw = RawCalls(witnessed=False)
    for value in range(10 * DISTINCT):
        raw.call(5, named("kill"), 62, registers(value + 1), time_ns=10, process=WHO)
    found = raw.finish()
    assert len(found) == DISTINCT + 1
    assert sum(call.count for call in found) == 10 * DISTINCT
    assert found[-1].args == registers()
