"""The releases in which functions check: of functions that the other tables name, and in the order of time."""

import pytest

from profiler.catalogue.functions import FUNCTIONS, OLD
from profiler.catalogue.sites import SITES
from profiler.catalogue.substitutes import SUBSTITUTES


def number(release):
    return tuple(map(int, release.split(".")))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_is_named_and_its_releases_are_in_order(name):
    span = FUNCTIONS[name]
    assert any(name in row.functions for row in (*SITES, *SUBSTITUTES))
    assert number(span.since) >= number(OLD)
    assert not span.until or number(span.until) > number(span.since)
    assert span.since == OLD or span.why, "what changed then"


def test_most_rows_tell_since_when_they_hold():
    told = [row for row in SITES if not row.functions.isdisjoint(FUNCTIONS)]
    assert len(told) > len(SITES) * 0.8
