"""A container that binds loop devices and fails leaves none of them behind."""

import images
import pytest

from profiler.harness.docker.sandbox import DockerSandbox
from profiler.kernel.loops import bound
from profiler.model import DeviceClass
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
        outcome = sandbox.rerun(pool, timeout=60 if then == "exit 7" else 2)
    finally:
        sandbox.close()
    if not outcome.stdout.startswith(b"/dev/loop"):
        pytest.skip(f"no free loop device: {outcome.stderr.decode()}")
    assert outcome.exit_code == 7 or outcome.timed_out
    assert {loop.node for loop in bound()} - before == set()
