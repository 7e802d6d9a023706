"""Whose events are the workload's while the kernel shows everybody's."""

from profiler.witness.events import Exec, Exit, Fork, TaskExit
from profiler.witness.family import Family


def _family(*pids: int) -> Family:
    family = Family()
    for pid in pids:
        family.add(pid)
    return family


def test_everything_is_kept_while_the_kernel_filters():
    event = Exit(1, 99, "open", 0)
    assert _family(1).keep([event]) == [event]


def test_children_and_workers_belong_to_the_family_from_before_it_is_alone():
    family = _family(1)
    family.keep([Fork(1, 1, 2, False), Fork(2, 2, 3, True)])
    family.alone = True
    kept = [Exit(3, 3, "open", 0), Exit(5, 2, "open", 0)]
    assert family.keep([kept[0], Exit(4, 9, "open", 0), kept[1]]) == kept


def test_a_number_that_is_used_again_is_nobodys():
    family = _family(1, 2)
    family.alone = True
    gone = TaskExit(1, 2)
    assert family.keep([gone, Exit(2, 2, "open", 0)]) == [gone]


def test_a_thread_that_executes_takes_its_leaders_number():
    family = _family(5)
    family.alone = True
    family.keep([Fork(1, 5, 6, True), TaskExit(2, 5)])
    took_over = Exec(3, 5, 6, "/bin/true")
    call = Exit(4, 5, "open", 0)
    assert family.keep([took_over, call]) == [took_over, call]


def test_strangers_forks_are_no_family():
    family = _family(1)
    family.alone = True
    assert family.keep([Fork(1, 8, 9, False), Exit(2, 9, "open", 0)]) == []
