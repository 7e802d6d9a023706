"""Profiles in a kernel with AppArmor: what they allow and deny, and that none stays. Skipped where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from profiler import apparmor, cleaning
from profiler.errors import HostError
from profiler.kernel import confinement
from profiler.model import Observation, Process
from profiler.synthesizer.apparmor_profile import openings, profile_text
from profiler.witness import confined

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(apparmor.parser() is None, reason="this kernel has no AppArmor, or there is no apparmor_parser"),
]
SHELL = Process(10, "/bin/sh")
# Opens each file to write, as a program that the profile confines, and says how that went.
OPENS = """
import os, sys
name, paths = sys.argv[1], sys.argv[2:]
with open("/proc/thread-self/attr/exec", "w") as attr:
    attr.write(f"exec {name}")
program = '''
import os, sys
for path in sys.argv[1:]:
    try:
        os.close(os.open(path, os.O_WRONLY))
        print(path, "opened")
    except OSError as error:
        print(path, error.strerror)
'''
os.execv(sys.executable, [sys.executable, "-c", program, *paths])
"""


def loaded() -> str:
    return (apparmor.SECURITYFS / "profiles").read_text()


def opened_by(name: str, *paths: str) -> dict[str, str]:
    done = subprocess.run([sys.executable, "-c", OPENS, name, *paths], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def test_only_the_named_path_of_a_denied_tree_can_be_written() -> None:
    program = apparmor.parser()
    assert program is not None
    parameter, sibling, other = "/proc/sys/vm/swappiness", "/proc/sys/vm/dirty_ratio", "/proc/sys/kernel/panic"
    exact, wide = openings([Observation("openat", (), 3, parameter, SHELL)])
    with apparmor.Loaded(program) as profiles:
        name = profiles.name()
        profiles.load(profile_text(name, exact))
        assert f"{name} (enforce)" in loaded()
        denied = os.strerror(13)
        assert opened_by(name, parameter, sibling, other) == {parameter: "opened", sibling: denied, other: denied}
        wider = profiles.name()
        profiles.load(profile_text(wider, wide))
        assert opened_by(wider, parameter, sibling, other) == {parameter: "opened", sibling: "opened", other: denied}
    assert name not in loaded()
    assert wider not in loaded()


@pytest.mark.parametrize("rules", ["", "userns,", "io_uring,", "userns, io_uring,"])
def test_a_class_without_a_rule_is_denied_where_the_policy_knows_it(rules: str) -> None:
    """Asked by hand beside: a program that the profile confines unshares, and says with which error it failed."""
    program = apparmor.parser()
    assert program is not None
    named = {rule.strip() for rule in rules.split(",") if rule.strip()}
    if not all(apparmor.knows(program, f"{name},") for name in named):
        pytest.skip("this parser has no such rule")
    with apparmor.Loaded(program) as profiles:
        name = profiles.name()
        profiles.load(f'profile "{name}" {{ file, capability, network, {rules} }}')
        found = confined.denied_classes(name)
        unshares = "import ctypes; print(ctypes.CDLL(None, use_errno=True).unshare(0x10000000), ctypes.get_errno())"
        confine = "import os, sys; open('/proc/self/attr/current', 'w').write('changeprofile ' + sys.argv[1]); "
        words = [sys.executable, "-c", confine + unshares, name]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert ("userns" in found) is (said.strip() == "-1 13")
    assert not found & named


def test_nothing_is_denied_by_no_profile() -> None:
    assert confined.denied_classes("") == frozenset()
    assert confined.denied_classes("capprofile-no-such-profile") == frozenset()
    assert confinement.profile_of(os.getpid()) == ""


def test_a_profile_that_makes_no_sense_is_refused_in_the_parsers_words() -> None:
    program = apparmor.parser()
    assert program is not None
    with apparmor.Loaded(program) as profiles, pytest.raises(HostError, match="refuses the profile"):
        profiles.load("profile x {")


def test_what_a_killed_run_left_is_unloaded_and_only_that() -> None:
    load = (
        "import os\nfrom profiler import apparmor\nfrom profiler.synthesizer.apparmor_profile import *\n"
        "profiles = apparmor.Loaded(apparmor.parser())\nname = profiles.name()\n"
        "profiles.load(profile_text(name, Opening((), (), (), ())))\nprint(name, flush=True)\nos._exit(9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(apparmor.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=False, env=environment)
    name = done.stdout.strip()
    assert name in loaded(), done.stderr
    assert f"AppArmor profile {name}" in cleaning.everything()
    assert name not in loaded()
    assert "docker-default" not in " ".join(apparmor.clean_leftovers())
