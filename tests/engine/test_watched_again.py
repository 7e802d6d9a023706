"""A lean recipe's run, watched: it has the privileges of its rerun, although its gate had more to be steered with."""

from __future__ import annotations

import pytest
from pace import SLOWER

from profiler.harness.docker.sandbox import DockerSandbox
from profiler.model import Capability, Syscalls
from profiler.profiles import Profiles
from profiler.tracer.session import trace

pytestmark = pytest.mark.engine

SETS = "grep -E '^(Cap|NoNewPrivs|Uid|Groups)' /proc/self/status"


@pytest.fixture
def both_ways(tools_image):
    """Reruns a script with a recipe, then watches the same: the rerun's outcome and the watched run's trace.

    The output of a watched run is thrown away: there the script itself compares, and ends with 0 if all is the same.
    """
    made = []

    def sandbox(flags, script):
        made.append(DockerSandbox(("docker", "run", "--rm", *flags, tools_image, "sh", "-c", script)))
        return made[-1]

    def run(script, *names, flags=(), calls=()):
        recipe = frozenset(map(Capability, names)) | ({Syscalls(calls)} if calls else frozenset())
        first = sandbox(flags, script)
        with Profiles(first.filter_of) as profiles:
            first.profile_of = profiles.path_of
            outcome = first.rerun(recipe, timeout=60 * SLOWER)
            expected = ("-e", f"EXPECTED={outcome.stdout.decode().rstrip()}")
            again = sandbox((*flags, *expected), f'[ "$({script})" = "$EXPECTED" ]')
            again.profile_of = profiles.path_of
            run = again.start(recipe, quiet=True)
            assert run.caught.capabilities == frozenset(names)
            watched = trace(run)
            assert watched.exit_code == 0, outcome
            assert "no_new_privs" not in watched.losses
            return outcome, watched

    yield run
    for each in made:
        each.close()


@pytest.mark.parametrize("flags", [(), ("--user", "nobody"), ("--user", "1000:1000")])
def test_its_sets_are_the_recipes(both_ways, flags):
    both_ways(SETS, "SETUID", "SETGID", "KILL", flags=flags)


def test_a_set_user_id_program_works_and_is_seen(both_ways):
    outcome, watched = both_ways("su -s /bin/sh nobody -c id", "SETUID", "SETGID", flags=("--user", "1000"))
    assert outcome.exit_code != 0  # su asks an ordinary user for a password
    outcome, watched = both_ways("su -s /bin/sh nobody -c id", "SETUID", "SETGID")
    assert b"nobody" in outcome.stdout
    assert any(o.call == "setuid" and o.result == 0 for o in watched.observations)


@pytest.mark.parametrize("names", [("NET_RAW",), ()])
def test_file_capabilities_are_bounded_as_in_the_rerun(both_ways, names):
    """With NET_RAW outside the bounding set, a program with that file capability cannot be executed."""
    script = "ping -c1 -W1 127.0.0.1 > /dev/null 2>&1; echo $?"
    outcome, _ = both_ways(script, *names, flags=("--user", "nobody"))
    assert (outcome.stdout == b"0\n") == bool(names)


def test_the_engines_filter_is_the_recipes_own(both_ways):
    """SYS_ADMIN, which only the gate has, opens mount(2) and unshare(2) in the engine's default filter."""
    script = "unshare -Ur true 2>&1; unshare -m true 2>&1; echo $?"
    outcome, _ = both_ways(script)
    assert b"not permitted" in outcome.stdout
    both_ways(script, "SETFCAP", calls=("unshare", "mount"))
