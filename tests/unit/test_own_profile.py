"""The AppArmor profile of a workload's own: what it opens, how it is tried, and what is said of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
from sample_report import report

from profiler import apparmor, confining, leftovers
from profiler.model import Capability, Observation, Outcome, OwnProfile, Process, Rerun, SecurityOption, Trace
from profiler.report import manifest, table
from profiler.synthesizer.apparmor_profile import openings, profile_text
from profiler.synthesizer.confinement import APPARMOR_UNCONFINED

SHELL = Process(10, "/bin/sh", ("sh",), 0)
RECIPE = frozenset({Capability("SYS_ADMIN"), APPARMOR_UNCONFINED})


def mount(flags="0", kind='"tmpfs"', result=0):
    return Observation("mount", ('"none"', '"/mnt"', kind, flags, "NULL"), result, "/mnt", SHELL)


def write(path):
    return Observation("openat", (), 3, path, SHELL)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (mount(), "mount fstype=(tmpfs),"),
        (mount("MS_NOSUID|MS_SILENT", '"fuse.bindfs"'), "mount fstype=(fuse.bindfs),"),
        (mount("MS_BIND", "NULL"), "mount options=(bind),"),
        (mount("MS_BIND|MS_REC", "NULL"), "mount options=(rbind),"),
        (mount("MS_RDONLY|MS_REMOUNT|MS_BIND", "NULL"), "remount,"),
        (mount("MS_REC|MS_PRIVATE", "NULL"), "mount options=(make-rprivate),"),
        (mount("MS_SILENT|MS_SLAVE", "NULL"), "mount options=(make-slave,silent),"),
        (mount("MS_MOVE", "NULL"), "mount options=(move),"),
        (mount(kind="0x7ffe"), "mount,"),
        (Observation("mount", (), None, None, SHELL), "mount,"),
        (Observation("move_mount", ("3", '""'), 0, None, SHELL), "mount options=(move),"),
        (Observation("pivot_root", (), 0, None, SHELL), "pivot_root,"),
    ],
)
def test_each_call_is_opened_by_what_the_kernel_takes_it_for(call, rule):
    first, *wider = openings([call])
    assert first.rules == (rule,)
    assert all(opening.rules == ("mount,",) for opening in wider)
    assert f"  {rule}\n" in profile_text("one", first)
    assert ("deny mount," in profile_text("one", first)) is (rule == "pivot_root,")


UNSHARE = Observation("unshare", ("CLONE_NEWNS|CLONE_NEWUSER",), 0, None, SHELL)
RING = Observation("io_uring_setup", ("8", "{IORING_SETUP_SQPOLL}"), 3, None, SHELL)


def test_a_class_of_actions_is_opened_where_docker_default_denies_it():
    (only,) = openings([UNSHARE], {"userns"}, {"userns", "io_uring"})
    assert only.rules == ("userns,",)
    assert only.words == ("user namespaces",)
    assert "  userns,\n" in profile_text("one", only)
    assert "deny mount," in profile_text("one", only)
    exact, wide = openings([UNSHARE, mount(), RING], {"userns", "io_uring"})
    assert exact.rules == ("io_uring,", "mount fstype=(tmpfs),", "userns,")
    assert wide.rules == ("io_uring,", "mount,", "userns,")


def test_a_class_that_docker_default_does_not_know_is_kept_open_and_not_told():
    """Our profile may be compiled by a newer policy than the engine's, which names the `abi` of an older one."""
    assert openings([UNSHARE], (), {"userns"}) == ()
    exact, wide = openings([UNSHARE, mount()], (), {"userns", "io_uring"})
    assert [opening.kept for opening in (exact, wide)] == [("userns,",), ("userns,",)]
    assert "  userns,\n" in profile_text("one", exact)
    assert exact.words == ("mounting tmpfs",)
    old, _ = openings([UNSHARE, mount()], (), ())
    assert "userns" not in profile_text("one", old)


def test_what_failed_unconfined_is_not_opened():
    assert openings([mount(result=-22), write("/etc/passwd")]) == ()


def test_a_path_is_left_out_of_the_denials_and_nothing_else():
    exact, wide = openings([write("/proc/sys/vm/swappiness")])
    assert exact.rules == () == wide.rules
    assert exact.words == ("writing to /proc/sys/vm/swappiness",)
    text = profile_text("one", exact)
    assert 'deny "/proc/sys/vm/swappines[^s]**" w,' in text
    assert 'deny "/proc/sys/[^k]**" w,' not in text
    assert 'deny "/proc/sys/kernel/{?,??,[^s][^h][^m]**}" w,' in text
    assert "/proc/sys/vm" not in profile_text("one", wide)
    assert 'deny "/proc/kcore" rwklx,' in profile_text("one", wide)


def test_a_path_that_no_rule_can_spell_opens_its_whole_rule():
    (only,) = openings([write("/sys/kernel/a b")])
    assert only.globs == ("/sys/[^f]*/**",)


@pytest.mark.skipif(shutil.which(apparmor.PARSER) is None, reason="no apparmor_parser")
def test_the_parser_takes_every_profile():
    calls = [
        mount(),
        mount("MS_BIND", "NULL"),
        mount("MS_REC|MS_SLAVE|MS_SILENT", "NULL"),
        write("/proc/sysrq-trigger"),
    ]
    calls += [write("/sys/kernel/mm/ksm/run"), write("/proc/sys/net/ipv4/conf/a-b.c/x"), mount("MS_REMOUNT", "NULL")]
    for opening in openings([*calls, Observation("pivot_root", (), 0, None, SHELL), mount("MS_MOVE", "NULL")]):
        done = subprocess.run(
            [apparmor.PARSER, "--skip-kernel-load", "--skip-cache"],
            input=profile_text("capprofile-test", opening, remarks=["one remark"]).encode(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()


class FakeBench:
    """Passes with the profiles whose text holds `wanted`."""

    def __init__(self, loaded, wanted):
        self.loaded, self.wanted, self.recipes = loaded, wanted, []

    def run(self, recipe, purpose):
        self.recipes.append(recipe)
        (option,) = (p.option for p in recipe if isinstance(p, SecurityOption))
        return Rerun(recipe, Outcome(0, 1.0), self.wanted in self.loaded[option.removeprefix("apparmor=")], purpose)


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """A kernel and a parser that take every profile: what is loaded, by name."""
    loaded: dict[str, str] = {}

    def parse(words, *, input, **_):
        if "--replace" in words:
            loaded[input.decode().partition('profile "')[2].partition('"')[0]] = input.decode()
        return subprocess.CompletedProcess(words, 0, b"", b"")

    (tmp_path / ".replace").touch()
    monkeypatch.setattr(apparmor, "SECURITYFS", tmp_path)
    monkeypatch.setattr(apparmor, "parser", lambda: "/sbin/parser")
    monkeypatch.setattr(apparmor.subprocess, "run", parse)
    monkeypatch.setattr(apparmor, "unload", loaded.pop)
    return loaded


def seen(*observations):
    return Trace(observations, (), (), {}, 0, 1.0)


def test_the_narrowest_profile_that_passes_is_written_and_told(kernel, tmp_path):
    bench = FakeBench(dict(kernel), "mount fstype=(tmpfs),")
    bench.loaded = kernel
    offer = confining.own_profile(bench, seen(mount()), RECIPE, tmp_path / "one two.json")
    assert kernel == {}  # unloaded
    (tried,) = bench.recipes
    assert APPARMOR_UNCONFINED not in tried
    assert Capability("SYS_ADMIN") in tried
    assert offer.profile is not None
    text = Path(offer.profile.file).read_text()
    assert f'profile "{offer.profile.name}"' in text
    assert "mount fstype=(tmpfs)," in text
    assert offer.profile.name.startswith("docker-one-two-")
    assert not leftovers.is_leftover(offer.profile.name)
    (advice,) = offer.advice
    assert "mounting tmpfs" in advice.text
    assert advice.flag == f"--security-opt apparmor={offer.profile.name}"
    assert "apparmor_parser --replace" in advice.reason


def test_a_wider_one_is_tried_next_and_none_is_told_where_all_fail(kernel, tmp_path):
    bench = FakeBench(kernel, "  mount,\n")
    offer = confining.own_profile(bench, seen(mount()), RECIPE, tmp_path / "m.json")
    assert offer.profile is not None
    assert offer.profile.allows == ("any mount",)
    assert len(bench.recipes) == 2
    nothing = confining.own_profile(FakeBench(kernel, "no such rule"), seen(mount()), RECIPE, tmp_path / "n.json")
    assert nothing == confining.NOTHING
    assert not (tmp_path / "n.apparmor").exists()
    assert kernel == {}


def test_what_could_be_had_is_told_where_it_cannot_be_made(kernel, monkeypatch, tmp_path):
    offer = confining.own_profile(FakeBench(kernel, ""), seen(mount()), RECIPE, None)
    assert offer.profile is None
    assert "-o FILE" in offer.advice[0].reason
    monkeypatch.setattr(apparmor, "parser", lambda: None)
    offer = confining.own_profile(FakeBench(kernel, ""), seen(mount()), RECIPE, tmp_path / "m.json")
    assert "install apparmor_parser" in offer.advice[0].reason
    assert list(tmp_path.glob("*.apparmor")) == []


def test_a_recipe_that_leaves_apparmor_on_is_offered_nothing(kernel, tmp_path):
    recipe = RECIPE - {APPARMOR_UNCONFINED}
    assert confining.own_profile(FakeBench(kernel, ""), seen(mount()), recipe, tmp_path / "m.json") == confining.NOTHING


def test_a_profile_that_the_parser_refuses_is_none(kernel, monkeypatch, tmp_path):
    refused = subprocess.CompletedProcess((), 1, b"", b"syntax error\n")
    monkeypatch.setattr(apparmor.subprocess, "run", lambda *_, **__: refused)
    monkeypatch.setattr(apparmor, "unload", lambda name: None)
    assert confining.own_profile(FakeBench({}, ""), seen(mount()), RECIPE, tmp_path / "m.json") == confining.NOTHING


def test_only_the_profiles_of_dead_owners_are_unloaded(monkeypatch, tmp_path):
    own = f"{leftovers.owner_tag()}-apparmor-0"
    dead = "capprofile-4194304-1-apparmor-0"  # beyond pid_max's limit
    (tmp_path / "profiles").write_text(f"docker-default (enforce)\n{own} (enforce)\n{dead} (enforce)\n")
    (tmp_path / ".remove").touch()
    monkeypatch.setattr(apparmor, "SECURITYFS", tmp_path)
    assert apparmor.clean_leftovers() == (f"AppArmor profile {dead}",)
    assert (tmp_path / ".remove").read_text() == dead
    monkeypatch.setattr(apparmor, "SECURITYFS", tmp_path / "none")
    assert apparmor.clean_leftovers() == ()
    apparmor.unload("none")


def test_the_manifest_names_the_profile():
    own = OwnProfile("docker-m-12345678", "/x/m.apparmor", ("mounting tmpfs",))
    document = manifest.render(report(apparmor=own))
    jsonschema.validate(document, json.loads(manifest.SCHEMA_DOCUMENT.read_text(encoding="utf-8")))
    assert document["recipe"]["apparmor_profile"] == {
        "name": "docker-m-12345678",
        "file": "/x/m.apparmor",
        "allows": ["mounting tmpfs"],
    }
    assert manifest.render(report())["recipe"]["apparmor_profile"] is None
    assert table.render(report(apparmor=own))
