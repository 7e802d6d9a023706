"""Device nodes that reach a container by another way than the engine's `--device`: a rule is all that they lack."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from profiler import pipeline
from profiler.harness.docker.flags import flags_of
from profiler.harness.docker.sandbox import DockerSandbox
from profiler.options import Options, Prove

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("volume", "node"),
    [("/dev/fuse:/dev/mine", "/dev/mine"), ("/dev/fuse:/srv/f", "/srv/f"), ("/dev:/host/dev", "/host/dev/fuse")],
)
def test_a_volume_that_brings_a_node_needs_a_rule(volume: str, node: str, busybox_image: str) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("this host has no /dev/fuse")
    said: list[str] = []
    words = ("docker", "run", "--rm", "-v", volume, busybox_image, "sh", "-c", f"exec 3<{node}")
    with closing(DockerSandbox(words)) as sandbox:
        report = pipeline.profile(sandbox, Options(prove=Prove.ALL), said.append)
    assert report.verdict.verified
    assert report.verdict.minimal
    assert flags_of(report.verdict.recipe) == ("--cap-drop", "ALL", "--device-cgroup-rule", "c 10:229 r")
    assert not [line for line in said if "halve" in line]
