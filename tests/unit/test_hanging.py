"""Whether a container hangs: by its first process's age, not by what its engine takes around it."""

import os
import time

from profiler.harness.docker import run as docker_run


class FakeEngine:
    def __init__(self, *states):
        self.states = list(states)

    def inspect(self, container):
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {"State": {"Status": state, "Running": state == "running", "Pid": os.getpid()}}


def waits(*answers):
    """`ended`, which gives these answers in turn and keeps how long it was to wait."""
    left = list(answers)

    def ended(seconds):
        ended.waited.append(seconds)
        return left.pop(0) if left else False

    ended.waited = []
    return ended


def hangs(engine, ended, timeout):
    return docker_run._hangs(engine, "c", ended, timeout)


def test_a_client_that_ends_in_time_is_asked_nothing():
    ended = waits(True)
    assert not hangs(None, ended, 5.0)
    assert ended.waited == [5.0]


def test_a_container_that_takes_long_to_start_gets_its_time_from_its_start(monkeypatch):
    monkeypatch.setattr(docker_run, "_age", lambda pid: 2.0)
    ended = waits(False, False, True)
    assert not hangs(FakeEngine("created", "running"), ended, 5.0)
    assert ended.waited == [5.0, docker_run._LOOK_SECONDS, 3.0]


def test_one_that_has_ended_waits_for_its_client():
    assert not hangs(FakeEngine("exited"), waits(False, False, True), 5.0)


def test_one_whose_process_is_too_old_hangs(monkeypatch):
    monkeypatch.setattr(docker_run, "_age", lambda pid: 5.0)
    assert hangs(FakeEngine("running"), waits(False), 5.0)


def test_an_engine_that_never_starts_it_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(docker_run, "_ENGINE_SECONDS", 0.0)
    assert hangs(FakeEngine("created"), waits(), 5.0)


def test_the_age_of_a_process_is_counted_from_its_start():
    age = docker_run._age(os.getpid())
    assert age is not None
    assert 0 <= age <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert docker_run._age(4194304) is None  # beyond pid_max's limit


def test_without_a_limit_only_the_end_counts():
    assert not hangs(None, waits(True), None)
