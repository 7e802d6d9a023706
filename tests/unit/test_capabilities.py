"""Names, numbers and masks; the sets of a process that this test may read."""

from __future__ import annotations

import os

import pytest

from profiler.kernel.capabilities import CAPABILITIES, NUMBER, last_cap, mask, name_of, names, sets_of


def test_numbers_are_those_of_the_kernels_header():
    # linux/capability.h, some from each generation
    assert (NUMBER["CHOWN"], NUMBER["SYS_ADMIN"], NUMBER["MKNOD"], NUMBER["AUDIT_READ"]) == (0, 21, 27, 37)
    assert NUMBER["CHECKPOINT_RESTORE"] == 40 == len(CAPABILITIES) - 1


@pytest.mark.parametrize("bits", [0, 1, 1 << 21, 0xA80425FB, (1 << 41) - 1, 1 << 41 | 1])
def test_a_mask_survives_its_names(bits):
    assert mask(names(bits)) == bits


def test_dockers_default_set():
    assert names(0xA80425FB) == {
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"),
        *("NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP"),
    }


def test_a_capability_of_a_newer_kernel_goes_by_its_number():
    assert name_of(63) == "63"
    assert names(1 << 63) == {"63"}


def test_an_unknown_name_is_refused():
    with pytest.raises(KeyError):
        mask(["SYS_NONSENSE"])


def test_own_sets_hold_together():
    sets = sets_of("self")
    assert sets == sets_of(os.getpid())
    assert sets.effective <= sets.permitted
    assert sets.ambient <= sets.permitted & sets.inheritable
    assert all(NUMBER.get(name, last_cap()) <= last_cap() for name in sets.bounding)


def test_no_such_process():
    with pytest.raises(FileNotFoundError):
        sets_of(2**22 + 1)  # above the highest pid_max
