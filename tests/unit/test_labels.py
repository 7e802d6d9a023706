"""What SELinux denied a rerun, and what is made of it."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_verifier import Imagined, bench_of, caps, order

from profiler.harness.docker import labels as engine_labels
from profiler.harness.docker.arguments import parse
from profiler.harness.interface import Relabelled
from profiler.model import KernelCheck, LabelDenial, Observation, Outcome, Process, Rerun
from profiler.relabelling import relabelling
from profiler.report.evidence import document_of, headline
from profiler.synthesizer.confinement import UNLABELLED
from profiler.synthesizer.labels import denials_of, label_requirements, lacks_by_label
from profiler.verifier.refine import passing

CONTAINER = "system_u:system_r:container_t:s0:c1,c2"
MOUNT = Process(7, "/usr/bin/mount", ("mount", "-t", "tmpfs"), 0)
SHELL = Process(8, "/bin/busybox", ("/bin/cat", "/x/f"), 0)


def denied(permission, tclass, comm, path=None, target=CONTAINER):
    return LabelDenial((permission,), tclass, CONTAINER, target, path, Process(99, comm))


def rerun(*denials, passed=False):
    return Rerun(frozenset(), Outcome(0 if passed else 1, 1.0, denials=denials), passed, "verify")


READ = denied("read", "file", "cat", "f", "unconfined_u:object_r:var_t:s0")
TMPFS = denied("mount", "filesystem", "mount", "/", "system_u:object_r:tmpfs_t:s0")


def test_only_a_failing_run_that_was_denied_something_lacks_it():
    assert lacks_by_label(rerun(READ)) == {UNLABELLED}
    assert not lacks_by_label(rerun())
    assert not lacks_by_label(rerun(READ, passed=True))


def test_what_the_proving_run_was_denied_counts_first():
    assert denials_of(rerun(READ), [rerun(TMPFS)]) == (READ,)
    assert denials_of(None, [rerun(READ, passed=True), rerun(TMPFS)]) == (TMPFS,)
    assert denials_of(rerun(), [rerun(TMPFS)]) == (TMPFS,)


def test_a_denial_is_evidence_with_the_calls_that_it_struck():
    fsmount = Observation("fsmount", ("3",), 4, None, MOUNT, (KernelCheck("SYS_ADMIN", True, "may_mount"),))
    others = [Observation("umount2", (), 0, "/", MOUNT), Observation("fsmount", (), 0, None, SHELL)]
    (row,) = label_requirements([*others, fsmount], [TMPFS])
    assert row.alternatives == (frozenset({UNLABELLED}),)
    told, call = row.evidence
    assert call is fsmount
    assert told.process.exe == "/usr/bin/mount"
    assert told.process.pid == 99
    assert headline(document_of(told)) == "SELinux denies container_t: mount on filesystem / (tmpfs_t)"


def test_a_capability_strikes_the_call_that_asked_for_it():
    chown = Observation("fchownat", (), 0, "/x", SHELL, (KernelCheck("CHOWN", True, "setattr_prepare"),))
    (row,) = label_requirements(
        [Observation("openat", (), 0, "/x", SHELL), chown], [denied("chown", "capability", "cat")]
    )
    assert row.evidence[1:] == (chown,)
    assert headline(document_of(row.evidence[0])) == "SELinux denies container_t: chown on capability"


def test_a_file_strikes_by_its_name_or_its_path():
    written = Observation("openat", (), 3, "/x/f", SHELL)
    for path in ("f", "/x/f"):
        (row,) = label_requirements([written], [denied("read", "file", "cat", path)])
        assert written in row.evidence
    (row,) = label_requirements([written], [denied("read", "file", "cat", "/y/f")])
    assert written not in row.evidence


def test_without_denials_there_is_nothing_to_tell():
    assert label_requirements([], []) == ()


def test_the_label_of_the_gate_is_read_where_the_engine_reads_it(tmp_path: Path):
    (tmp_path / "config").write_text("# the policy\nSELINUX=enforcing\nSELINUXTYPE=default\n")
    contexts = tmp_path / "default" / "contexts"
    contexts.mkdir(parents=True)
    assert engine_labels.file_label(tmp_path) is None
    (contexts / "lxc_contexts").write_text(
        'process = "system_u:system_r:container_t:s0"\nfile = "system_u:object_r:container_file_t:s0"\n'
    )
    assert engine_labels.file_label(tmp_path) == "system_u:object_r:container_file_t:s0"


def test_a_host_without_a_policy_labels_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_labels, "file_label", lambda: None)
    gate = tmp_path / "gate"
    gate.write_bytes(b"")
    before = os.listxattr(gate)
    engine_labels.label(gate)
    assert os.listxattr(gate) == before


def test_what_the_first_rerun_tells_is_tried_before_anything_else():
    imagined = Imagined("AL")
    bench = bench_of(imagined)
    found = passing(
        bench, [caps("A"), caps("AB")], caps("ABL"), order=order, tells=lambda rerun: caps("L"),
        investigate=lambda rerun: pytest.fail("not needed"), deny=lambda rerun: pytest.fail("not needed"),
    )  # fmt: skip
    assert found == caps("AL")
    assert len(bench.runs) == 2


def test_mounts_of_denied_files_are_relabelled_and_no_others(monkeypatch: pytest.MonkeyPatch):
    contexts = {"/srv/x": "u:object_r:var_t:s0", "/srv/y": "u:object_r:etc_t:s0", "/srv/z": "u:object_r:var_t:s0"}
    monkeypatch.setattr(engine_labels, "label_of", lambda path: contexts.get(path, ""))
    run = parse(
        ("docker", "run", "-v", "/srv/x:/x:ro", "-v", "/srv/y:/y", "-v", "/srv/z:/z:Z", "-v", "name:/n", "image")
    )
    found = engine_labels.to_relabel(run, frozenset({"var_t"}))
    assert [mount.target for mount in found] == ["/x"]
    assert [engine_labels.relabelling(mount).tokens for mount in found] == [("-v", "/srv/x:/x:ro,z")]
    again = engine_labels.relabelled(run, frozenset({"/x"}))
    assert [flag.value for flag in again.flags] == ["/srv/x:/x:ro,z", "/srv/y:/y", "/srv/z:/z:Z", "name:/n"]


class Mounting:
    """A bench and its sandbox, whose engine could relabel one mount."""

    def __init__(self, tried: bool, passes: bool) -> None:
        self.given, self.passes, self.ran = Relabelled(("-v /x:/x:z",), tried), passes, []

    @contextmanager
    def relabelled(self, types):
        assert types == {"var_t"}
        yield self.given

    def trial(self, recipe, purpose):
        self.ran.append(recipe)
        return rerun(passed=self.passes)


def test_relabelled_files_are_offered_where_the_workload_passes_with_them():
    mounting = Mounting(tried=True, passes=True)
    (advice,) = relabelling(mounting, mounting, frozenset({UNLABELLED, *caps("A")}), [READ])
    assert advice.flag == "-v /x:/x:z"
    assert advice.reason.startswith("tried on copies")
    assert mounting.ran == [caps("A")]
    mounting = Mounting(tried=True, passes=False)
    assert relabelling(mounting, mounting, frozenset({UNLABELLED}), [READ]) == ()


def test_what_is_not_copied_is_not_tried():
    mounting = Mounting(tried=False, passes=True)
    (advice,) = relabelling(mounting, mounting, frozenset({UNLABELLED}), [READ])
    assert advice.reason.startswith("not tried")
    assert mounting.ran == []


def test_nothing_is_offered_where_files_were_not_denied_or_the_label_stays():
    mounting = Mounting(tried=True, passes=True)
    assert relabelling(mounting, mounting, frozenset({UNLABELLED}), [TMPFS]) == ()
    assert relabelling(mounting, mounting, frozenset(), [READ]) == ()
