"""Which files a container has produced, seen through the engine, whether they lie in its layer or in a volume."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from docker.errors import NotFound

from profiler.harness.docker.engine import Engine
from profiler.harness.fingerprint import fingerprint

_HEADER = "X-Docker-Container-Path-Stat"
_CHUNK = 1 << 20  # bytes
_Stamp = tuple[object, ...]


class Produced:
    """Looks at `paths` of a created container before it starts; `digests` tells which of them were produced since.

    A path without a leading slash is below the container's working directory.
    """

    def __init__(self, engine: Engine, container: str, paths: Sequence[str]) -> None:
        self._engine = engine
        self._container = container
        facts = engine.inspect(container) if paths else {}
        directory = (facts.get("Config") or {}).get("WorkingDir") or "/"
        self._mounts = [(str(m["Destination"]), str(m["Source"])) for m in facts.get("Mounts", ()) if m.get("Source")]
        self._paths = {path: posixpath.normpath(posixpath.join(directory, path)) for path in paths}
        self._before = {path: self._stamp(place) for path, place in self._paths.items()}

    def digests(self) -> dict[str, str]:
        """The digest of each path; empty for what does not exist, is no regular file, or is as it was before."""
        found = {}
        for path, place in self._paths.items():
            stamp = self._stamp(place)
            found[path] = self._digest(place) if stamp is not None and stamp != self._before[path] else ""
        return found

    def _stamp(self, place: str) -> _Stamp | None:
        """What changes when a file is written anew; None when there is none. In a volume also the change time, which
        nobody can set (inode(7))."""
        facts = self._look(place)
        if facts is None:
            return None
        destination, source = max(
            ((at, source) for at, source in self._mounts if place == at or place.startswith(at.rstrip("/") + "/")),
            default=("", ""),
        )
        changed = None
        if destination:
            try:
                changed = Path(source + place[len(destination.rstrip("/")) :]).stat().st_ctime_ns
            except OSError:  # below a symbolic link that only the container can follow
                changed = None
        return facts.get("mtime"), facts.get("size"), facts.get("mode"), changed

    def _look(self, place: str) -> dict[str, Any] | None:
        """The engine's stat of a path, symbolic links followed; None when there is nothing."""
        api = self._engine.api
        answer = api.head(
            api._url("/containers/{0}/archive", self._container), params={"path": place}, timeout=api.timeout
        )
        if answer.status_code != 200:
            return None
        facts: dict[str, Any] = json.loads(base64.b64decode(answer.headers[_HEADER]))
        target = facts.get("linkTarget")
        return self._look(target) if target and target != place else facts

    def _digest(self, place: str) -> str:
        try:
            stream, facts = self._engine.api.get_archive(self._container, place)
        except NotFound:
            return ""
        target = facts.get("linkTarget")
        with tarfile.open(fileobj=io.BufferedReader(_Chunks(stream)), mode="r|") as tar:
            entry = tar.next()
            content = tar.extractfile(entry) if entry is not None and entry.isreg() else None
            if entry is not None and content is not None:
                digest = hashlib.sha256()
                while chunk := content.read(_CHUNK):
                    digest.update(chunk)
                return fingerprint(digest, entry.mode, entry.uid, entry.gid)
        return self._digest(target) if target and target != place else ""


class _Chunks(io.RawIOBase):
    """The bytes of an iterator as a stream."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = next(self._chunks, b"")
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)
