"""Globs of apparmor.d(5), and how one path is left out of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.catalogue.apparmor import DENIED_FILES
from profiler.synthesizer.globs import NAMEABLE, matches, without

REAL = ["/sys/kernel/mm/ksm/run", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches", "/proc/irq/1/x", "/sys/fs/bpf/a"]
RANDOM = st.text(alphabet="/skcrvmabpnet16-_.*[]{},^\\?~", min_size=0, max_size=12).map(lambda text: "/" + text)
PATHS = st.one_of(RANDOM, st.sampled_from(REAL))
GLOBS = st.sampled_from([rule.glob for rule in DENIED_FILES] + ["/s**", "/*", "/a?c", "/{a,b*}/**", "/[^-k]**"])


@pytest.mark.parametrize(
    ("glob", "path", "does"),
    [
        ("/proc/*", "/proc/x", True),
        ("/proc/*", "/proc/x/y", False),
        ("/proc/sys/[^k]**", "/proc/sys/net/ipv4/ip_forward", True),
        ("/proc/sys/[^k]**", "/proc/sys/kernel/x", False),
        ("/{?,??,[^s][^h]**}", "/ab", True),
        ("/{?,??,[^s][^h]**}", "/shm", False),
        ("/a\\*b", "/a*b", True),
        ("/a\\*b", "/acb", False),
    ],
)
def test_what_a_glob_matches(glob, path, does):
    assert matches(glob, path) is does


@settings(max_examples=400, deadline=None)
@given(glob=GLOBS, out=PATHS, other=PATHS)
def test_without_one_path_all_others_are_matched_as_before(glob, out, other):
    left = without(glob, out)
    assert not any(matches(one, out) for one in left)
    if other != out:
        assert any(matches(one, other) for one in left) is matches(glob, other)


@settings(max_examples=200, deadline=None)
@given(glob=GLOBS, out=PATHS, data=st.data())
def test_what_begins_like_the_path_is_matched_as_before(glob, out, data):
    place = data.draw(st.integers(1, len(out)))
    other = out[:place] + data.draw(PATHS)[data.draw(st.integers(0, 1)) :]
    if other != out:
        assert any(matches(one, other) for one in without(glob, out)) is matches(glob, other)


def test_two_paths_are_left_out_one_after_the_other():
    first, second = "/proc/sys/vm/swappiness", "/proc/sys/vm/overcommit_memory"
    left = [two for one in without("/proc/sys/[^k]**", first) for two in without(one, second)]
    assert not any(matches(one, path) for one in left for path in (first, second))
    assert any(matches(one, "/proc/sys/vm/swappines") for one in left)
    assert any(matches(one, "/proc/sys/vm/swappiness2") for one in left)
    assert any(matches(one, "/proc/sys/vm/overcommit_ratio") for one in left)
    assert any(matches(one, "/proc/sys/net/core/somaxconn") for one in left)
    assert not any(matches(one, "/proc/sys/kernel/shmmax") for one in left)
    assert len(left) < 100


def test_what_no_rule_can_name():
    assert NAMEABLE.fullmatch("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
    assert not NAMEABLE.fullmatch("/sys/with space")
    assert not NAMEABLE.fullmatch("/sys/ü")
