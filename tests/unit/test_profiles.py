"""The seccomp profiles that are tried: each recipe has its own, also where several are asked for at the same time."""

from __future__ import annotations

import errno
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import profiler.profiles
from profiler.errors import UsageError
from profiler.kernel import bpf
from profiler.model import AllowList, Capability, Recipe, Syscalls, needs_profile
from profiler.profiles import Profiles, place_of

DENIED = {"CHOWN": "read", "FOWNER": "write", "KILL": "open", "MKNOD": "close"}  # by the filter with this capability


def recipe(capability: str) -> Recipe:
    return frozenset({Capability(capability), Syscalls(("pivot_root",))})


def test_recipes_that_are_tried_side_by_side_have_profiles_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler.profiles, "STATE", tmp_path)
    all_ask = threading.Barrier(len(DENIED))

    def filter_of(capabilities: frozenset[str]) -> bytes:
        (name,) = capabilities
        return bpf.assemble([bpf.Rule(list(DENIED).index(name))], action=bpf.RET_ERRNO | errno.EPERM)

    def path_of(capability: str) -> str:
        all_ask.wait(timeout=10)
        return profiles.path_of(recipe(capability))

    for _ in range(20):
        with Profiles(filter_of) as profiles, ThreadPoolExecutor(len(DENIED)) as pool:
            paths = dict(zip(DENIED, pool.map(path_of, DENIED), strict=True))
            assert len(set(paths.values())) == len(DENIED)
            for capability, path in paths.items():
                (entry,) = json.loads(Path(path).read_text("utf-8"))["syscalls"]
                assert set(DENIED.values()) - set(entry["names"]) == {DENIED[capability]}
            assert [profiles.path_of(recipe(name)) for name in DENIED] == list(paths.values())
        assert not any(tmp_path.iterdir())


def test_a_recipe_with_an_allow_list_has_a_narrower_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler.profiles, "STATE", tmp_path)
    program = bpf.assemble([bpf.Rule(0)], action=bpf.RET_ERRNO | errno.EPERM)
    wide = recipe("CHOWN")
    narrow = wide | {AllowList(("read", "write"))}
    with Profiles(lambda capabilities: program) as profiles:
        paths = [Path(profiles.path_of(one)) for one in (wide, narrow)]
        entries = [json.loads(path.read_text("utf-8"))["syscalls"] for path in paths]
        assert entries[1] == [{"names": ["pivot_root", "write"], "action": "SCMP_ACT_ALLOW"}]  # read is denied anyway
        assert set(entries[0][0]["names"]) > {"pivot_root", "write", "open"}
    assert needs_profile(frozenset({AllowList(())}))
    assert not needs_profile(frozenset({Capability("CHOWN")}))


def test_what_cannot_be_kept_is_a_usage_error_and_what_is_there_stays(tmp_path: Path) -> None:
    def filter_of(_capabilities: frozenset[str]) -> bytes:
        return bpf.assemble([bpf.Rule(0)], action=bpf.RET_ERRNO | errno.EPERM)

    with Profiles(filter_of) as profiles:
        with pytest.raises(UsageError, match="cannot be written"):
            profiles.keep(recipe("CHOWN"), tmp_path / "gone" / "profile.json")
        (tmp_path / "profile.json").mkdir()
        with pytest.raises(UsageError, match="cannot be written"):
            profiles.keep(recipe("CHOWN"), tmp_path / "profile.json")
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


def test_the_final_profile_has_a_place_where_the_working_directory_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("profiler.profiles.os.access", lambda path, mode: True)
    assert place_of(None) == Path("capprofile.seccomp.json")
    assert place_of(Path("/x/manifest.json")) == Path("/x/manifest.seccomp.json")
    monkeypatch.setattr("profiler.profiles.os.access", lambda path, mode: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = place_of(None)
    assert place.parent.is_dir()
    assert place.parent.parent == tmp_path
