"""The user's `-v` and `--mount`: what they mount, and the same flags with another source."""

from __future__ import annotations

import pytest

from profiler.harness.docker.arguments import parse
from profiler.harness.docker.mounts import BIND, VOLUME, mounts, with_source


def only(*words: str):
    (mount,) = mounts(parse(("docker", "run", *words, "image")))
    return mount


@pytest.mark.parametrize(
    ("words", "kind", "source", "target", "read_only"),
    [
        (("-v", "/srv:/data"), BIND, "/srv", "/data", False),
        (("-v", "/srv:/data:ro,z"), BIND, "/srv", "/data", True),
        (("--volume=name:/data",), VOLUME, "name", "/data", False),
        (("--mount", "type=bind,src=/srv,dst=/data"), BIND, "/srv", "/data", False),
        (("--mount", "type=bind,source=/srv,target=/data,readonly"), BIND, "/srv", "/data", True),
        (("--mount", "source=name,destination=/data"), VOLUME, "name", "/data", False),
    ],
)
def test_what_is_mounted_where(words, kind, source, target, read_only):
    mount = only(*words)
    assert (mount.kind, mount.source, mount.target, mount.read_only) == (kind, source, target, read_only)


def test_what_is_the_containers_own_is_left_out():
    words = (
        "-v",
        "/data",
        "--mount",
        "type=tmpfs,target=/tmp",
        "--mount",
        "type=volume,target=/own",
        "--tmpfs",
        "/run",
    )
    assert not list(mounts(parse(("docker", "run", *words, "image"))))


@pytest.mark.parametrize(
    ("words", "path", "flag"),
    [
        (("-v", "/srv:/data:z"), "/copy", "--volume /copy:/data:z"),
        (("-v", "name:/data:nocopy"), None, "--mount type=volume,target=/data,volume-nocopy"),
        (("-v", "name:/data"), "/copy", "--volume /copy:/data"),
        (("--mount", "type=bind,src=/srv,dst=/data"), "/copy", "--mount type=bind,source=/copy,dst=/data"),
        (("--mount", "src=name,dst=/data,volume-nocopy"), "/copy", "--mount type=bind,source=/copy,dst=/data"),
        (("--mount", "src=name,dst=/data,volume-nocopy"), None, "--mount type=volume,dst=/data,volume-nocopy"),
    ],
)
def test_another_source_at_the_same_place(words, path, flag):
    assert " ".join(with_source(only(*words), path).tokens) == flag


def test_an_engines_socket_is_known_by_its_name():
    assert only("-v", "/var/run//docker.sock:/var/run/docker.sock").is_engine
    assert not only("-v", "/srv:/data").is_engine
