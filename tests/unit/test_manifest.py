"""Manifest v1: documents meet the schema, are written whole or not at all, and are read with clear refusals."""

from __future__ import annotations

import copy
import json
import os
import stat
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_report import EVERYTHING, FUSE, KEYCTL, LOOP, MASKED, MOUNTED, PORTS, SYS_ADMIN, report

from profiler.errors import UsageError
from profiler.model import Capability, Device, Observation, Observed, Process, Status, Trace, Verdict
from profiler.output import check_writable
from profiler.report import manifest
from profiler.report.evidence import clean, printable

SCHEMA = json.loads(manifest.SCHEMA_DOCUMENT.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def valid(document: object) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(json.loads(json.dumps(document)))


@pytest.mark.parametrize(
    "made",
    [
        report(),
        report(()),
        report(EVERYTHING),
        report(EVERYTHING, native=True),
        report(verified=False, minimal=False),
        report(runs=0, verified=False, minimal=False),
        report(losses={"overrun": 3, "none": 0}),
        report((), optional={Capability("SYSLOG"): "syslog(10)"}),
    ],
)
def test_what_is_rendered_meets_the_schema(made):
    valid(manifest.render(made))


@settings(max_examples=50, deadline=None)
@given(
    members=st.frozensets(st.sampled_from(EVERYTHING)),
    argument=st.text(),
    path=st.binary(max_size=40).map(os.fsdecode),
    result=st.one_of(st.none(), st.integers(-4095, 2**31)),
    count=st.integers(1, 10**6),
    lost=st.integers(0, 5),
    verified=st.booleans(),
    minimal=st.booleans(),
)
def test_any_report_meets_the_schema_and_can_be_written(
    *, members, argument, path, result, count, lost, verified, minimal
):
    seen = Observation("openat", (argument,), result, path, Process(1, path, (path, argument)), (), count)
    trace = Trace((seen,), (), (), {"overrun": lost}, 0, 1.0)
    document = manifest.render(
        report(members, verified=verified, minimal=minimal, trace=trace, command=(path, argument), docker_command=())
    )
    valid(document)
    json.dumps(document, ensure_ascii=False).encode("utf-8")


def test_the_recipe_says_what_the_flags_say():
    recipe = manifest.render(report(EVERYTHING))["recipe"]
    assert recipe["cap_drop"] == ["ALL"]
    assert recipe["cap_add"] == ["DAC_READ_SEARCH", "SYS_ADMIN"]
    assert recipe["devices"] == ["/dev/fuse:/dev/fuse:rw", "/dev/loop0:/dev/loop0:rw", "/dev/loop1:/dev/loop1:rw"]
    assert recipe["device_cgroup_rules"] == []  # the nodes of a pool are allowed by their --device
    assert recipe["security_opt"] == ["systempaths=unconfined", "seccomp=manifest.seccomp.json"]
    assert recipe["sysctls"] == {"net.ipv4.ip_unprivileged_port_start": "80"}
    assert recipe["syscalls"] == ["keyctl"]


def test_an_allow_list_is_told_with_its_reasons_and_read_back(tmp_path):
    seen = Observed(
        {"read": "/bin/cat", "chown": "/bin/chown"}, ("capset", "read"), {"futex": "a lock"}, {"mmap2": "/b"}
    )
    recipe = frozenset({SYS_ADMIN, seen.bound})
    document = manifest.render(report(recipe, verdict=Verdict(recipe, True, False, (), observed=seen)))
    valid(document)
    assert document["recipe"]["observed"] == {
        "syscalls": ["capset", "chown", "futex", "mmap2", "read"],
        "workload": {"chown": "/bin/chown", "read": "/bin/cat"},
        "runtime": ["capset", "read"],
        "incidental": {"futex": "a lock"},
        "i386": {"mmap2": "/b"},
    }
    assert document["recipe"]["privileges"] == ["SYS_ADMIN", "seccomp:observed"]
    manifest.write(tmp_path / "m.json", document)
    assert manifest.load(tmp_path / "m.json").recipe() == recipe
    assert manifest.render(report())["recipe"]["observed"] is None


def test_flags_with_an_equals_sign_are_read_too():
    made = report(docker_args=("--cap-drop=ALL", "--cap-add=SYS_TIME", "--sysctl=a.b=c=d"))
    recipe = manifest.render(made)["recipe"]
    assert recipe["cap_add"] == ["SYS_TIME"]
    assert recipe["sysctls"] == {"a.b": "c=d"}


def test_evidence_names_call_arguments_path_process_and_checks():
    (row,) = manifest.render(report())["requirements"]
    assert row["privilege"] == "SYS_ADMIN"
    assert row["alternatives"] == [["SYS_ADMIN"]]
    assert row["status"] == Status.REQUIRED
    (piece,) = row["evidence"]
    assert piece["syscall"] == "mount"
    assert piece["args"] == list(MOUNTED.args)
    assert piece["path"] == "/mnt"
    assert piece["process"] == {
        "pid": 4711,
        "exe": "/bin/mount",
        "argv": ["mount", "-t", "tmpfs", "none", "/mnt"],
        "uid": 0,
        "chain": ["/bin/sh"],
    }
    assert piece["kernel_checks"][0]["site"] == "may_mount"


def test_losses_never_leave_minimal_proved():
    assert manifest.render(report())["verification"]["minimal"] == "proved"
    assert manifest.render(report(losses={"overrun": 1}))["verification"]["minimal"] == "unproved"
    assert manifest.render(report(verified=False))["verification"]["minimal"] == "unproved"


def test_a_verdict_without_runs_is_skipped():
    made = report(verdict=Verdict(frozenset({SYS_ADMIN}), False, False, ()))
    assert manifest.render(made)["verification"]["status"] == "skipped"


def test_writing_and_reading_gives_the_recipe_back(tmp_path):
    target = tmp_path / "m.json"
    check_writable(target)
    assert list(tmp_path.iterdir()) == []
    manifest.write(target, manifest.render(report(EVERYTHING)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    read = manifest.load(target)
    loops = {Device("/dev/loop0", "rw"), Device("/dev/loop1", "rw")}
    assert read.recipe() == {SYS_ADMIN, Capability("DAC_READ_SEARCH"), FUSE, KEYCTL, MASKED, PORTS} | loops
    assert LOOP.label in {row["privilege"] for row in read.requirements}
    assert read.seccomp_profile == "manifest.seccomp.json"
    assert read.command == ("docker", "run", "--privileged", "image", "mount")


def test_writing_follows_a_link_and_replaces_its_target(tmp_path):
    (tmp_path / "real.json").write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to("real.json")
    manifest.write(link, {"a": 1})
    assert link.is_symlink()
    assert json.loads((tmp_path / "real.json").read_text()) == {"a": 1}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "m.json"
    target.write_text("old")
    with pytest.raises(ValueError, match="JSON compliant"):
        manifest.write(target, {"a": float("nan")})
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_device_is_written_to_and_not_replaced():
    check_writable(Path("/dev/null"))
    manifest.write(Path("/dev/null"), {})
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("name", "says"),
    [("-", "standard output"), (".", "directory"), ("missing/m.json", "no directory"), ("/proc/m.json", "written")],
)
def test_an_unwritable_output_is_found_beforehand(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says) as caught:
        check_writable(Path(name))
    assert caught.value.hint


def test_writing_into_a_directory_that_went_away_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be written"):
        manifest.write(tmp_path / "gone" / "m.json", {})


def refused(tmp_path: Path, text: str) -> UsageError:
    target = tmp_path / "m.json"
    target.write_text(text)
    with pytest.raises(UsageError) as caught:
        manifest.load(target)
    assert str(target) in caught.value.message
    assert caught.value.hint
    return caught.value


def test_another_version_is_named(tmp_path):
    error = refused(tmp_path, json.dumps({"schema": "capprofile/manifest/v2"}))
    assert "this is capprofile/manifest/v2; this program reads v1" in error.message


@pytest.mark.parametrize(
    ("text", "says"), [("{", "not JSON"), ("[]", "no manifest"), ('{"schema": 1}', "no manifest"), ("\x00", "not JSON")]
)
def test_other_files_are_refused(tmp_path, text, says):
    assert says in refused(tmp_path, text).message


def test_a_file_that_is_not_text_is_refused(tmp_path):
    target = tmp_path / "m.json"
    target.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UsageError, match="not JSON"):
        manifest.load(target)


@pytest.mark.parametrize(
    "keys",
    [("recipe",), ("recipe", "cap_add"), ("requirements",), ("verification", "runs"), ("losses",), ("workload",)],
)
def test_a_missing_key_is_named(tmp_path, keys):
    document = copy.deepcopy(manifest.render(report()))
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    assert ".".join(keys) in refused(tmp_path, json.dumps(document)).message


@pytest.mark.parametrize(
    ("key", "value"), [("device_cgroup_rules", ["nonsense"]), ("cap_add", [1]), ("devices", [None]), ("syscalls", 7)]
)
def test_a_recipe_without_sense_is_refused(tmp_path, key, value):
    document = manifest.render(report())
    document["recipe"][key] = value
    assert "makes no sense" in refused(tmp_path, json.dumps(document)).message


def test_unknown_keys_are_ignored(tmp_path):
    document = manifest.render(report()) | {"future": {"a": 1}}
    target = tmp_path / "m.json"
    manifest.write(target, document)
    assert manifest.load(target).document["future"] == {"a": 1}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        manifest.load(tmp_path / "none.json")


@given(st.binary())
def test_any_bytes_become_valid_text(data):
    assert clean(os.fsdecode(data)).encode("utf-8") is not None
    assert printable(os.fsdecode(data)).isprintable()


@given(st.text(st.characters(blacklist_categories=())))
def test_any_string_becomes_printable(text):
    assert printable(text).isprintable()
