"""Who a container's workload is: read from another root file system as a process inside would read it."""

import os

import pytest

from profiler.errors import UsageError
from profiler.harness.docker.arguments import parse
from profiler.harness.docker.image import Image, account, command_of, is_root, read_below, user_of, with_home

PASSWD = (
    "# comment\nroot:x:0:0:root:/root:/bin/sh\nalice:x:1000:100::/home/alice:/bin/sh\n7:x:70:70::/seven:\nshort:x:5\n\n"
)
GROUP = "root:x:0:\nusers:x:100:\nextra:x:2000:bob,alice\nother:x:3000:bob\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("user", "extra", "ids", "home"),
    [
        ("alice", (), (1000, 100, (100, 2000)), "/home/alice"),
        ("1000", (), (1000, 100, (100, 2000)), "/home/alice"),
        ("alice:other", (), (1000, 3000, (3000,)), "/home/alice"),
        ("alice:77", ("extra", "88"), (1000, 77, (77, 88, 2000)), "/home/alice"),
        ("4444", (), (4444, 0, (0,)), "/"),
        ("4444:other", (), (4444, 3000, (3000,)), "/"),
        ("7", (), (7, 0, (0,)), "/"),  # a number is always an id, even where a user has it for a name
    ],
)
def test_user_is_resolved_as_the_engine_does(root, user, extra, ids, home):
    found = account(root, user, extra)
    assert (found.credentials.uid, found.credentials.gid, found.credentials.groups) == ids
    assert found.home == home


@pytest.mark.parametrize(
    ("user", "extra", "part"),
    [
        ("bob", (), "bob"),
        ("alice:none", (), "none"),
        ("alice", ("none",), "none"),
        ("short", (), "broken line"),
        ("4294967295", (), "2147483647"),
        ("²", (), "²"),
    ],
)
def test_unknown_user_or_group_is_named(root, user, extra, part):
    with pytest.raises(UsageError) as caught:
        account(root, user, extra)
    assert part in caught.value.message
    assert caught.value.hint


def test_numbers_need_no_files(tmp_path):
    assert account(tmp_path, "12:34", ()).credentials.groups == (34,)


def test_links_stay_below_the_root(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_text("outside")
    (root / "data").mkdir()
    (root / "data/passwd").write_text("inside")
    for name, target in {
        "absolute": "/data/passwd",
        "up": "../../../../data/passwd",
        "chain": "absolute",
        "escape": str(outside),
        "loop": "loop",
        "directory": "/data",
    }.items():
        (root / "etc" / name).symlink_to(target)
    os.mkfifo(root / "etc/fifo")
    answers = {name: read_below(root, f"etc/{name}") for name in ("absolute", "up", "chain")}
    assert set(answers.values()) == {b"inside"}
    assert read_below(root, "etc/directory/passwd") == b"inside"
    for name in ("escape", "loop", "directory", "fifo", "missing"):
        assert read_below(root, f"etc/{name}") == b""


IMAGE = Image("i", "sha256:0", ("entry", "e"), ("cmd",), "alice")


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (("i",), ("entry", "e", "cmd")),
        (("i", "mine"), ("entry", "e", "mine")),
        (("--entrypoint", "x", "i"), ("x",)),
        (("--entrypoint", "x", "i", "y"), ("x", "y")),
        (("--entrypoint=", "i", "y"), ("y",)),
    ],
)
def test_entrypoint_and_command_go_together_as_in_the_engine(words, argv):
    assert command_of(IMAGE, parse(("docker", "run", *words))) == argv


@pytest.mark.parametrize("words", [("--entrypoint=", "i")])
def test_nothing_to_run_is_a_mistake(words):
    with pytest.raises(UsageError, match="no command"):
        command_of(IMAGE, parse(("docker", "run", *words)))


def test_flag_wins_over_the_images_user():
    assert user_of(IMAGE, parse(("docker", "run", "i"))) == "alice"
    assert user_of(IMAGE, parse(("docker", "run", "-u", "bob", "-u", "0:5", "i"))) == "0:5"
    assert [is_root(user) for user in ("", "root", "0:5", ":5", "alice", "00")] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


def test_home_is_replaced():
    assert with_home(("A=1", "HOME=/root", "HOMER=x"), "/h") == ("A=1", "HOMER=x", "HOME=/h")
