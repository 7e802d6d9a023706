"""What a container of the user's command would run, and as whom: from the image, the flags and the root file system.

The rules are the engine's (daemon/commit.go `merge`, moby/sys/user `GetExecUser`), done here because the container is
started as root at its gate and becomes the workload only afterwards.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.errors import UsageError
from profiler.harness.docker.arguments import DockerRun
from profiler.harness.docker.engine import Engine
from profiler.harness.interface import Credentials

_ACCOUNT_FILE_LIMIT = 16 * 1024 * 1024  # bytes; more is no passwd file
_SYMLINK_LIMIT = 40  # path_resolution(7): MAXSYMLINKS
_MAX_ID = (1 << 31) - 1  # moby/sys/user: ids above are refused


@dataclass(frozen=True)
class Image:
    """A local image: its name as the user gave it, its id, and what its configuration says.

    `health_check`: it has one (HEALTHCHECK of a Dockerfile, other than NONE).
    """

    name: str
    id: str
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    user: str
    health_check: bool = False


def find_image(engine: Engine, run: DockerRun) -> Image:
    """The image of the command, pulled if `docker run` would pull it.

    Raises UsageError when it is not here and cannot be pulled.
    """
    policy = run.value("pull") or "missing"
    found = None if policy == "always" else engine.image(run.image)
    if found is None:
        if policy == "never":
            raise UsageError(f"no image {run.image} is here, and --pull never keeps it away", "docker pull it first")
        engine.pull(run.image, run.value("platform"))
        found = engine.image(run.image)
    if found is None:
        raise UsageError(f"no image {run.image} is here", "check the spelling: `docker images` lists what is here")
    config = found.get("Config") or {}
    return Image(
        name=run.image,
        id=str(found["Id"]),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        cmd=tuple(config.get("Cmd") or ()),
        user=str(config.get("User") or ""),
        health_check=((config.get("Healthcheck") or {}).get("Test") or ["NONE"])[0] != "NONE",
    )


def command_of(image: Image, run: DockerRun) -> tuple[str, ...]:
    """What the container executes: entrypoint, then command.

    A given `--entrypoint`, an empty one too, also takes the image's own command away. UsageError when nothing is left.
    """
    given = run.value("entrypoint")
    entrypoint = image.entrypoint if given is None else (given,) if given else ()
    command = run.command or (image.cmd if given is None else ())
    argv = (*entrypoint, *command)
    if not argv:
        raise UsageError(f"the image {image.name} has no command of its own", "give one after the image")
    return argv


def user_of(image: Image, run: DockerRun) -> str:
    """`user[:group]` that the workload starts as: the flag, or the image's; empty for root."""
    return run.value("user") or image.user


def is_root(user: str) -> bool:
    """Whether `user[:group]` says root in a way that needs no passwd file."""
    return user.partition(":")[0] in ("", "0", "root")


@dataclass(frozen=True)
class Account:
    """The ids of a user inside a container, and the home directory that the engine sets HOME to."""

    credentials: Credentials
    home: str


def account(root: Path, user: str, extra_groups: Sequence[str]) -> Account:
    """Resolve `user[:group]` and the values of `--group-add` in the passwd and group files below `root`.

    A user by number needs no entry; it has group 0 then. The groups of an entry count unless a group was given. The
    primary group is always among the supplementary ones (moby CVE-2022-36109). UsageError for a name without entry.
    """
    name, _, group = user.partition(":")
    passwd = _entries(root, "etc/passwd", 7)
    groups = _entries(root, "etc/group", 4)
    number = _number(name)
    entry = next((e for e in passwd if (_number(e[2]) == number if number is not None else e[0] == name)), None)
    if entry is None and number is None:
        raise UsageError(f"the image has no user {name!r}", "give --user a name of its /etc/passwd, or a number")
    if number is not None and number > _MAX_ID:
        raise UsageError(f"--user {user}: ids end at {_MAX_ID}", "give a smaller number")
    uid = number if number is not None else _id(entry, 2, "passwd")
    gid = _id(entry, 3, "passwd") if entry else 0
    home = entry[5] if entry else "/"
    supplementary: list[int] = []
    if group:
        gid = _group(groups, group)
    elif entry:
        supplementary = [_id(e, 2, "group") for e in groups if entry[0] in e[3].split(",")]
    supplementary += [_group(groups, extra) for extra in extra_groups]
    return Account(Credentials(uid, gid, tuple(sorted({gid, *supplementary}))), home)


def with_home(env: tuple[str, ...], home: str) -> tuple[str, ...]:
    """The environment with HOME set to `home`: the gate was started as root and got root's."""
    return (*(entry for entry in env if not entry.startswith("HOME=")), f"HOME={home}")


def _group(groups: list[list[str]], group: str) -> int:
    number = _number(group)
    entry = next((e for e in groups if (_number(e[2]) == number if number is not None else e[0] == group)), None)
    if entry is not None:
        return _id(entry, 2, "group")
    if number is None:
        raise UsageError(f"the image has no group {group!r}", "give a name of its /etc/group, or a number")
    return number


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _id(entry: list[str] | None, field: int, file: str) -> int:
    number = _number(entry[field]) if entry else None
    if number is None:
        raise UsageError(
            f"the image's /etc/{file} has a broken line: {':'.join(entry or [])!r}", "mend it in the image"
        )
    return number


def _entries(root: Path, path: str, fields: int) -> list[list[str]]:
    """The lines of a passwd(5) or group(5) file, each padded to `fields`; none when there is no such file."""
    text = read_below(root, path).decode(errors="surrogateescape")
    lines = (line.strip() for line in text.splitlines())
    entries = [line.split(":") for line in lines if line and not line.startswith("#")]
    return [entry + [""] * (fields - len(entry)) for entry in entries]


def read_below(root: Path, path: str) -> bytes:
    """The content of a regular file of another root file system; empty when there is none.

    Symbolic links are followed as a process inside would follow them, so that an image cannot point us at a file of
    the host (what openat2(2) RESOLVE_IN_ROOT is for). Nothing may run inside meanwhile.
    """
    parts = [part for part in path.split("/") if part]
    done: list[str] = []
    links = 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            done = done[:-1]
            continue
        here = root.joinpath(*done, part)
        try:
            status = here.lstat()
        except OSError:
            return b""
        if not stat.S_ISLNK(status.st_mode):
            done.append(part)
            continue
        links += 1
        if links > _SYMLINK_LIMIT:
            return b""
        target = str(here.readlink())
        if target.startswith("/"):
            done = []
        parts = [step for step in target.split("/") if step not in ("", ".")] + parts
    here = root.joinpath(*done)
    try:
        if not stat.S_ISREG(here.lstat().st_mode):  # a FIFO would make us wait for ever
            return b""
        with here.open("rb") as file:
            return file.read(_ACCOUNT_FILE_LIMIT)
    except OSError:
        return b""
