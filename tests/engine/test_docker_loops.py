"""A container that binds loop devices or switches swap on, and fails, leaves nothing of it behind."""

import images
import pytest
from pace import SLOWER

from profiler.harness.docker.sandbox import DockerSandbox
from profiler.kernel.loops import bound
from profiler.kernel.swaps import swap_files
from profiler.model import Capability, DeviceClass, SecurityOption
from profiler.witness.nodes import present

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("file", "then"),
    [("/new", "exit 7"), ("/etc/passwd", "exit 7"), ("/volume/new", "exit 7"), ("/new", "sleep 600")],
)
def test_what_it_bound_to_a_file_of_its_own_goes_with_it(file, then):
    nodes = present("b", 7)
    if not nodes:
        pytest.skip("no loop device here")
    before = {loop.node for loop in bound()}
    script = f"truncate -s 1M {file}; losetup -f --show {file}; {then}"
    words = ("docker", "run", "--rm", "-v", "/volume", images.tools(), "sh", "-c", script)
    sandbox = DockerSandbox(words)
    try:
        pool = frozenset({DeviceClass("b", 7, None, "rw", nodes)})
        outcome = sandbox.rerun(pool, timeout=60 * SLOWER if then == "exit 7" else 2)
    finally:
        sandbox.close()
    if not outcome.stdout.startswith(b"/dev/loop"):
        pytest.skip(f"no free loop device: {outcome.stderr.decode()}")
    assert outcome.exit_code == 7 or outcome.timed_out
    assert {loop.node for loop in bound()} - before == set()


@pytest.mark.parametrize(
    "where",
    ["/volume", "truncate -s 16M /image && mkfs.ext4 -q /image && mkdir /at && mount -o loop /image /at && cd /at"],
)
def test_so_does_what_it_has_switched_on_as_swap(where):
    nodes = present("b", 7)
    if not nodes:
        pytest.skip("no loop device here")
    before = swap_files(), {loop.node for loop in bound()}
    go = where if " " in where else f"cd {where}"
    script = (
        f"{go} || exit 1; dd if=/dev/zero of=swap bs=1M count=4 && "
        "chmod 600 swap && mkswap swap && swapon swap || exit 1; wc -l < /proc/swaps; exit 7"
    )
    words = ("docker", "run", "--rm", "-v", "/volume", images.tools(), "sh", "-c", script)
    options = frozenset({SecurityOption("seccomp=unconfined"), SecurityOption("apparmor=unconfined")})
    sandbox = DockerSandbox(words)
    try:
        pool = frozenset({DeviceClass("b", 7, None, "rw", nodes), Capability("SYS_ADMIN")})
        outcome = sandbox.rerun(pool | (options & sandbox.broad()), timeout=60 * SLOWER)
    finally:
        sandbox.close()
    if outcome.exit_code == 1:
        pytest.skip(f"no swap on this file system: {outcome.stderr.decode()}")
    assert outcome.exit_code == 7
    assert int(outcome.stdout.split()[-1]) == len(before[0]) + 2
    assert set(swap_files()) <= set(before[0])
    assert {loop.node for loop in bound()} <= before[1]
