"""What a `docker run` command mounts into its container with `-v` and `--mount`. Talks to nobody.

Sources: docker-container-run(1), opts/mount.go and volume/mounts in the engine's code.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from profiler.harness.docker.arguments import DockerRun, Flag

BIND, VOLUME = "bind", "volume"
_ENGINE_SOCKETS = ("docker.sock", "containerd.sock")
_ON = ("", "true", "1")


@dataclass(frozen=True)
class UserMount:
    """One of the user's mounts: `kind` is BIND or VOLUME, `source` a path of this host or a volume's name; `options` of
    `-v`, or the fields of `--mount` as written."""

    flag: Flag
    kind: str
    source: str
    target: str
    read_only: bool
    options: tuple[str, ...]

    @property
    def path(self) -> str:
        """The normalized source of a bind mount; empty for a volume."""
        return posixpath.normpath(self.source) if self.kind == BIND else ""

    @property
    def is_engine(self) -> bool:
        """Whether it lets the container talk to the engine."""
        return posixpath.basename(self.path) in _ENGINE_SOCKETS


def mounts(run: DockerRun) -> Iterator[UserMount]:
    """Every bind mount and named volume, in order; an anonymous volume is the container's own, and left out."""
    for flag in run.flags:
        if flag.name == "volume":
            source, colon, rest = flag.value.partition(":")
            target, _, written = rest.partition(":")
            if colon:
                options = tuple(filter(None, written.split(",")))
                kind = BIND if source.startswith(("/", ".", "~")) else VOLUME
                yield UserMount(flag, kind, source, target, "ro" in options, options)
        elif flag.name == "mount":
            options = tuple(flag.value.split(","))
            fields = dict(field.partition("=")[::2] for field in options)
            kind = fields.get("type", VOLUME)
            source = fields.get("source") or fields.get("src") or ""
            target = next((fields[key] for key in ("target", "destination", "dst") if key in fields), "")
            read_only = any(fields.get(key) in _ON for key in ("readonly", "ro"))
            if kind == BIND or (kind == VOLUME and source):
                yield UserMount(flag, kind, source, target, read_only, options)


def with_source(mount: UserMount, path: str | None) -> Flag:
    """The flag that mounts `path` of this host where `mount` mounts its own source; None: an anonymous volume."""
    if mount.flag.name == "volume" and path is not None:
        value = ":".join(filter(None, (path, mount.target, ",".join(mount.options))))
        return Flag("volume", value, ("--volume", value))
    if mount.flag.name == "volume":
        kept = ["volume-nocopy"] if "nocopy" in mount.options else []
        fields = [f"target={mount.target}", *kept]
    else:
        fields = [field for field in mount.options if field.partition("=")[0] not in ("type", "source", "src")]
    if path is None:
        fields = ["type=volume", *fields]
    else:
        fields = ["type=bind", f"source={path}", *(field for field in fields if not field.startswith("volume-"))]
    return Flag("mount", ",".join(fields), ("--mount", ",".join(fields)))
