"""The Docker engine: the real client for what the user would type, its API for looking and for cleaning up.

Every failure that leaves this room is a ProfilerError. What the engine itself refused is `Refused`, with its words.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Any

import docker
import requests
from docker.errors import APIError, DockerException, NotFound, TLSParameterError

from profiler.errors import HostError, ProfilerError, UsageError
from profiler.harness.docker.arguments import DockerRun
from profiler.harness.loops import bound_below, let_go, swap_off_below
from profiler.kernel.loops import bound
from profiler.kernel.swaps import swap_files
from profiler.leftovers import LABEL, owner_tag

_CLIENT_SECONDS = 60.0  # for client commands that only ask the engine something; creating may copy an image's volume
_NUMBERS = itertools.count()
_NOT_MODIFIED, _BAD_REQUEST, _CONFLICT = 304, 400, 409  # HTTP, as the engine's API uses them
_INSTALL = "install Docker, or give the command itself to profile it without an engine"
_ANONYMOUS = re.compile("[0-9a-f]{64}")  # how the engine names a volume that nobody named
_UNANSWERED = "start it (systemctl start docker), or point DOCKER_HOST to a running one"


class Refused(HostError):
    """The engine refused to create or start a container; `reason` is its own words, one line."""

    def __init__(
        self, reason: str, hint: str = "the engine's own words; the same flags fail with docker itself"
    ) -> None:
        super().__init__(f"Docker refuses: {reason}", hint)
        self.reason = reason


@contextmanager
def _talking(unix_socket: str | None) -> Iterator[None]:
    """Turn what the API's library raises into a HostError or Refused. NotFound passes: callers know what is missing.

    `unix_socket` is where the engine listens, if it does on one. It is tried beforehand, since the library leaves the
    sockets open with which it fails to connect.
    """
    try:
        if unix_socket is not None:
            with socket.socket(socket.AF_UNIX) as trial:
                trial.connect(unix_socket)
        yield
    except NotFound:
        raise
    except APIError as error:
        raise Refused(_one_line(str(error.explanation or error))) from error
    except (DockerException, requests.RequestException, OSError) as error:
        raise HostError(f"the Docker engine does not answer: {_root_cause(error)}", _UNANSWERED) from error


class Engine:
    """One engine, reached as the user's own command line reaches it (`-H`, `--context`, DOCKER_HOST, contexts)."""

    def __init__(self, run: DockerRun) -> None:
        """Find the client and the engine. HostError when there is no client, no engine, or one on another host."""
        if shutil.which(run.binary) is None:
            raise HostError(f"there is no docker client here ({run.binary})", _INSTALL)
        self._prefix = run.prefix()
        self._own_label = f"{LABEL}.engine={owner_tag()}-{next(_NUMBERS)}"  # another of this process is not this one
        host = self._endpoint()
        if host.startswith(("ssh://", "npipe://")):
            raise HostError(f"the Docker engine is on another host ({host})", "run capprofile there, as root")
        self._unix_socket = host.removeprefix("unix://") if host.startswith("unix://") else None
        with self._talking():
            try:
                # For TLS, docker.from_env reads DOCKER_TLS_VERIFY and DOCKER_CERT_PATH.
                self.api = docker.from_env(environment={**os.environ, "DOCKER_HOST": host}).api
            except TLSParameterError as error:
                raise HostError(f"the engine's certificates cannot be used: {_one_line(str(error))}") from error
        try:
            with self._talking():
                self.info: dict[str, Any] = self.api.info()
                self.version: dict[str, Any] = self.api.version()
        except BaseException:
            self.close()
            raise

    def _talking(self) -> AbstractContextManager[None]:
        return _talking(self._unix_socket)

    def _endpoint(self) -> str:
        done = self.client("context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
        if done.returncode != 0:
            raise UsageError(_last_line(done.stderr), "`docker context ls` lists the contexts")
        return done.stdout.decode(errors="replace").strip() or "unix:///var/run/docker.sock"

    @functools.cached_property
    def security(self) -> frozenset[str]:
        """What the engine confines containers with: names such as seccomp, apparmor, selinux, userns, rootless."""
        options = self.info.get("SecurityOptions") or []
        fields = (part.partition("=") for option in options for part in option.split(","))
        return frozenset(value for key, _, value in fields if key == "name")

    @property
    def identity(self) -> tuple[str, str]:
        """The engine's id and version: with another pair, nothing that was learned of it holds."""
        return (str(self.info.get("ID", "")), self.server_version)

    @property
    def server_version(self) -> str:
        """The engine's version, as it says it."""
        return str(self.version.get("Version", ""))

    def client(self, *words: str, seconds: float | None = _CLIENT_SECONDS) -> subprocess.CompletedProcess[bytes]:
        """Run the client with `words`, without standard input, and return what it said."""
        try:
            return subprocess.run(
                (*self._prefix, *words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise HostError(f"docker {words[0]} does not end within {seconds:.0f} s", _UNANSWERED) from error
        except OSError as error:
            raise _not_run(error) from error

    def attach(
        self,
        container: str,
        *,
        interactive: bool,
        stdin: int | IO[bytes],
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        options: Sequence[str] = (),
        own_group: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start `container` with the real client as our child, attached; `own_group` keeps a terminal's signals off it.

        The client passes on the signals that it gets, and makes the terminal raw where the container has one.
        Raises HostError when it cannot be run.
        """
        words = ("start", "--attach", *(("--interactive",) if interactive else ()), *options, container)
        try:
            return subprocess.Popen(
                (*self._prefix, *words),
                stdin=stdin if interactive else subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                process_group=0 if own_group else None,
            )
        except OSError as error:
            raise _not_run(error) from error

    def pull(self, image: str, platform: str | None) -> None:
        """Pull with the real client, its progress on our standard error. UsageError names the image and the reason."""
        words = ("pull", *(("--platform", platform) if platform else ()), image)
        try:
            # The progress is for the eyes; as with `docker run` it must not come between the workload's output.
            done = subprocess.run((*self._prefix, *words), stdin=subprocess.DEVNULL, stdout=2, stderr=-1, check=False)
        except OSError as error:
            raise _not_run(error) from error
        if done.returncode != 0:
            raise UsageError(
                f"no image {image} is here, and pulling it failed: {_last_line(done.stderr)}",
                "check the spelling (`docker images`), or make it with docker pull or docker build",
            )

    def create(self, words: Sequence[str]) -> str:
        """`docker create` with these flags, image and command, labelled as ours; returns the container's id.

        Raises Refused with the engine's or the client's words; UsageError for a name that is taken.
        """
        labels = ("--label", f"{LABEL}={owner_tag()}", "--label", self._own_label)
        done = self.client("create", *labels, *words, seconds=10 * _CLIENT_SECONDS)
        if done.returncode == 0:
            return done.stdout.decode().split()[-1]
        reason = _last_line(done.stderr)
        if "is already in use by container" in reason:
            raise UsageError(reason, "remove that container (docker rm), or give another --name")
        raise Refused(reason)

    def start(self, container: str) -> None:
        """Start a container of ours in the background. Raises Refused."""
        with self._talking():
            try:
                self.api.start(container)
            except NotFound as error:  # also what the engine says of a command or a network that does not exist
                raise Refused(_one_line(str(error.explanation or error))) from error

    def inspect(self, container: str) -> dict[str, Any]:
        """What the engine knows of a container. HostError when it is gone."""
        with self._talking():
            try:
                found: dict[str, Any] = self.api.inspect_container(container)
            except NotFound as error:
                hint = "another program removed it: run again without it (docker system prune, a clean-up job)"
                raise HostError(f"the container {container[:12]} was removed while it was watched", hint) from error
        return found

    def image(self, name: str) -> dict[str, Any] | None:
        """What the engine knows of a local image; None when it has none of that name. UsageError when it is no name."""
        with self._talking():
            try:
                found: dict[str, Any] = self.api.inspect_image(name)
            except NotFound:
                return None
            except APIError as error:
                if error.status_code != _BAD_REQUEST:
                    raise
                reason = _one_line(str(error.explanation)).removeprefix(f"no such image: {name}: ")
                raise UsageError(
                    f"{name} is no image's name: {reason}", "write it as name:tag, in lower case"
                ) from error
        return found

    def exit_code(self, container: str) -> int:
        """The exit code of a container that has ended, as Docker gives it (137 after SIGKILL)."""
        with self._talking():
            try:
                return int(self.api.wait(container, timeout=_CLIENT_SECONDS)["StatusCode"])
            except NotFound as error:
                raise HostError(f"the container {container[:12]} was removed while it was watched") from error

    def stop(self, container: str) -> None:
        """Stop as `docker stop` does: its stop signal, its grace period, SIGKILL. Quiet when it has ended."""
        self._quietly(lambda: self.api.stop(container))

    def kill(self, container: str) -> None:
        """SIGKILL. Quiet when it has ended."""
        self._quietly(lambda: self.api.kill(container))

    def remove(self, container: str) -> None:
        """Kill and remove it with its anonymous volumes, and let go of what it has left on files of its own: loop
        devices, and swap areas that are still on. Quiet when it is gone."""
        layers, volumes = self._own_places(container) if bound() or swap_files() else ((), ())
        loops = bound_below(layers, volumes)
        swap_off_below(volumes)
        self._quietly(lambda: self.api.remove_container(container, v=True, force=True))
        let_go(loops)

    def _own_places(self, container: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What goes with the container: the directories of its layers, and those of its anonymous volumes."""
        try:
            found = self.inspect(container)
        except ProfilerError:  # gone
            return (), ()
        driver = (found.get("GraphDriver") or {}).get("Data") or {}
        layers = [driver.get("UpperDir", ""), *driver.get("LowerDir", "").split(":")]
        volumes = [m["Source"] for m in found.get("Mounts") or () if _ANONYMOUS.fullmatch(m.get("Name") or "")]
        return tuple(layer for layer in layers if layer), tuple(volumes)

    def answers(self) -> bool:
        """Whether the engine still answers."""
        try:
            with self._talking():
                return bool(self.api.ping())
        except HostError:
            return False

    def labelled(self) -> dict[str, str]:
        """Every container that carries our label, running or not: its id, and its owner's tag."""
        with self._talking():
            found = self.api.containers(all=True, filters={"label": LABEL})
        return {container["Id"]: container["Labels"][LABEL] for container in found}

    def remove_own(self) -> None:
        """Remove what `create` made and nobody removed since, even if its answer never came back to us."""
        with self._talking():
            found = self.api.containers(all=True, filters={"label": self._own_label})
        for container in found:
            self.remove(container["Id"])

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self.api.close()

    def _quietly(self, action: Callable[[], None]) -> None:
        with self._talking():
            try:
                action()
            except NotFound:
                return
            except APIError as error:
                # It has ended, or is being removed already.
                if error.status_code not in (_NOT_MODIFIED, _CONFLICT):
                    raise


def _not_run(error: OSError) -> HostError:
    """The client cannot be executed: it has gone, or this host has no room for another process (EAGAIN, ENOMEM)."""
    full = error.errno in (errno.EAGAIN, errno.ENOMEM)
    hint = "too many processes, or too little memory: end some and run again" if full else _INSTALL
    return HostError(f"the docker client cannot be run: {error.strerror}", hint)


def _last_line(words: bytes) -> str:
    """The client's last line that says something, without its `docker: ` and its advice to see --help."""
    lines = [line.strip() for line in words.decode(errors="replace").splitlines()]
    telling = [line for line in lines if line and not line.startswith(("See 'docker", "Run 'docker", "Usage:"))]
    return _one_line(telling[-1] if telling else "docker failed and said nothing")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    for start in ("docker: ", "Error response from daemon: ", "error during connect: "):
        line = line.removeprefix(start)
    return line


def _root_cause(error: BaseException) -> str:
    """The innermost reason: the library wraps `Connection refused` in four layers of its own."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return (error.strerror or _one_line(str(error))) if isinstance(error, OSError) else _one_line(str(error))
