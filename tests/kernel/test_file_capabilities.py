"""Files with capabilities on a real file system, reached by their process and by their name below another root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from profiler.kernel.filecaps import XATTR, carried, open_in_root
from profiler.tracer.executed import ExecutedFiles
from profiler.witness.events import Exec

pytestmark = pytest.mark.kernel

NET_RAW_EP = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A copy of sleep(1) that carries cap_net_raw=ep."""
    program = tmp_path / "sleep"
    shutil.copy("/bin/sleep", program)
    os.setxattr(program, XATTR, NET_RAW_EP)
    return program


@pytest.fixture
def files() -> Iterator[ExecutedFiles]:
    with ExecutedFiles(os.getpid()) as watched:
        yield watched


def test_carried(marked: Path) -> None:
    found = carried(str(marked))
    assert found is not None
    assert found.permitted == {"NET_RAW"}
    assert found.effective
    assert carried("/bin/sleep") is None


def test_by_the_process_whatever_its_name(
    marked: Path, files: ExecutedFiles, wait_until: Callable[..., object]
) -> None:
    with subprocess.Popen([marked, "100"]) as process:
        # Popen's vfork(2) returns a little before the child has its new memory (exec_mmap in fs/exec.c).
        wait_until(lambda: Path(f"/proc/{process.pid}/exe").readlink() == marked)
        kinds = files.checks(Exec(0, process.pid, process.pid, "relative"))
        process.kill()
    assert [kind.check.capability for kind in kinds] == ["NET_RAW"]
    assert kinds[0].call == "execve"


def test_by_its_name_when_the_process_is_gone(marked: Path, files: ExecutedFiles) -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        gone = process.pid
    assert [kind.check.capability for kind in files.checks(Exec(0, gone, gone, str(marked)))] == ["NET_RAW"]
    assert files.checks(Exec(0, gone, gone, "/no/such/file")) == ()
    assert files.checks(Exec(0, gone, gone, "relative")) == ()


def test_links_stay_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "inside").write_text("inside")
    (tmp_path / "link").symlink_to("/bin/inside")
    root = os.open(tmp_path, os.O_PATH)
    fd = open_in_root(root, "/link")
    assert Path(f"/proc/self/fd/{fd}").read_text() == "inside"
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        open_in_root(root, "/../../etc/passwd")
    os.close(root)
