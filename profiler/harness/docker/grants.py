"""What an engine can grant: capabilities, devices and options, found by trying with throw-away containers.

No table of versions: an engine names the capability that it does not know when a container is created, runc fails when
one is started with a capability that the engine itself lacks, and both name a device that they cannot take.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from profiler.errors import HostError
from profiler.harness.docker.engine import Engine, Refused
from profiler.harness.docker.flags import SECCOMP_UNCONFINED, flags_of
from profiler.harness.docker.gate import await_gate, elsewhere, throwaway
from profiler.harness.docker.labels import UNLABELLED, is_labelled
from profiler.kernel.capabilities import CAPABILITIES, sets_of
from profiler.model import Capability, Device, DeviceClass, Privilege, Recipe, SecurityOption

EVERY_DEVICE = frozenset({DeviceClass("b", -1), DeviceClass("c", -1)})
"""The cgroup rules that `--privileged` has too, so that nodes which the workload makes can be used."""

# What runc makes in every container (libcontainer/specconv AllowedDevices), and the trees that are mounts of their own.
_EVERY_CONTAINERS = frozenset({"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"})
_OWN_MOUNTS = frozenset({"pts", "shm", "mqueue", "fd"})
_CAPABILITY = re.compile(r"CAP_([A-Z_]+)")
_DEVICE = re.compile(r"device \"?(/dev/[^\"\s]+)\"?")
_NO_IMAGE = "no such image"
_NO_GATE = "bind source path does not exist"
_ENGINE_PROGRAMS = frozenset({"dockerd", "containerd"})


@dataclass(frozen=True)
class Grants:
    """What the engine granted to a container that it really started. `every_device`: the rules of `EVERY_DEVICE`."""

    capabilities: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()
    every_device: bool = False

    def recipe(self) -> Recipe:
        """All of it as one recipe."""
        privileges: set[Privilege] = set(EVERY_DEVICE) if self.every_device else set()
        privileges.update(map(Capability, self.capabilities))
        privileges.update(map(Device, self.devices))
        privileges.update(map(SecurityOption, self.options))
        return frozenset(privileges)


def find_grants(engine: Engine, words: Sequence[str]) -> Grants:
    """Try the broadest container: `words` are the flags, image and command of `docker create` that start the gate.

    Raises HostError when not even a container without any privilege starts, or when its processes are not on this host.
    """
    try:
        known = known_capabilities(engine, words)
    except Refused as refused:
        if _NO_GATE in refused.reason:  # the engine does not even see the gate's file
            raise elsewhere() from refused
        raise
    bounding = engine_bounding()
    guess = known & bounding if bounding else known
    return _startable(engine, words, Grants(guess, frozenset(host_devices()), _options(engine, words), True))


def host_devices(dev: Path = Path("/dev")) -> tuple[str, ...]:
    """Every device node below the host's /dev that a container does not have of its own, sorted."""
    return tuple(
        sorted(
            str(path) for path in _nodes(dev, _OWN_MOUNTS) if path.parent != dev or path.name not in _EVERY_CONTAINERS
        )
    )


def _nodes(directory: Path, skipped: frozenset[str]) -> list[Path]:
    found: list[Path] = []
    try:
        entries = list(directory.iterdir())
    except OSError:
        return found
    for entry in entries:
        try:
            mode = entry.lstat().st_mode
        except OSError:  # it went away
            continue
        if stat.S_ISDIR(mode) and entry.name not in skipped:
            found += _nodes(entry, frozenset())
        elif (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)) and ":" not in entry.name:  # the flag's own separator
            found.append(entry)
    return found


def known_capabilities(engine: Engine, words: Sequence[str]) -> frozenset[str]:
    """The capabilities that the engine knows: it names the first that it does not, so one attempt each is needed.

    `words` are as for `find_grants`; the engine looks at the capabilities first, so their image need not exist.
    """
    known = set(CAPABILITIES)
    while True:
        flags = flags_of(frozenset(map(Capability, known)))
        try:
            with throwaway(engine, (*flags, *words)):
                return frozenset(known)
        except Refused as refused:
            named = set(_CAPABILITY.findall(refused.reason)) & known
            if _NO_IMAGE in refused.reason.lower():
                return frozenset(known)
            if not named:
                raise
            known -= named


def _options(engine: Engine, words: Sequence[str]) -> frozenset[str]:
    """The security options that switch off what this engine has."""
    options = {"systempaths=unconfined"}
    if "seccomp" in engine.security:
        options.add(SECCOMP_UNCONFINED)
    if "apparmor" in engine.security:
        options.add("apparmor=unconfined")
    if is_labelled(engine):
        options.add(UNLABELLED.option)
    for newer in ("writable-cgroups=true",):
        try:
            with throwaway(engine, ("--security-opt", newer, *words)):
                options.add(newer)
        except Refused:
            continue
    return frozenset(options)


def engine_bounding() -> frozenset[str]:
    """What the engine's own processes may hand on: the intersection of their bounding sets; empty when none is seen.

    A first guess only (the engine may have another program name): the container that is started decides.
    """
    sets: list[frozenset[str]] = []
    own = Path("/proc/self/ns/pid").readlink()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            comm = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
            # An engine inside a container (Docker-in-Docker) is in another pid namespace, and not the one that we use.
            if comm in _ENGINE_PROGRAMS and (process / "ns/pid").readlink() == own:
                sets.append(sets_of(int(process.name)).bounding)
        except OSError:
            continue
    return frozenset.intersection(*sets) if sets else frozenset()


def _startable(engine: Engine, words: Sequence[str], grants: Grants) -> Grants:
    """The largest part of `grants` with which a container starts. The usual case is one start."""
    while (refusal := _attempt(engine, words, grants)) is not None:
        named = grants.devices & set(_DEVICE.findall(refusal.reason))
        if not named:
            break
        grants = replace(grants, devices=grants.devices - named)
    else:
        return grants
    if (unable := _attempt(engine, words, Grants())) is not None:
        raise unable

    def starts(part: Grants) -> bool:
        return _attempt(engine, words, part) is None

    return Grants(
        capabilities=_largest(sorted(grants.capabilities), lambda some: starts(Grants(capabilities=some))),
        devices=_largest(sorted(grants.devices), lambda some: starts(Grants(devices=some))),
        options=_largest(sorted(grants.options), lambda some: starts(Grants(options=some))),
        every_device=starts(Grants(every_device=True)),
    )


def _largest(items: Sequence[str], works: Callable[[frozenset[str]], bool]) -> frozenset[str]:
    """Those of `items` that work, found by halving: few are refused where any are."""
    whole = frozenset(items)
    if not whole or works(whole):
        return whole
    if len(items) == 1:
        return frozenset()
    middle = len(items) // 2
    return _largest(items[:middle], works) | _largest(items[middle:], works)


def _attempt(engine: Engine, words: Sequence[str], grants: Grants) -> Refused | None:
    """Start a container with these grants and wait for its gate; the refusal, or None when it came to its gate."""
    try:
        with throwaway(engine, (*flags_of(grants.recipe()), *words)) as container:
            engine.start(container)
            await_gate(engine, container)
    except Refused as refused:
        return refused
    return None


def lsms_of(engine: Engine) -> tuple[str, ...]:
    """The host's security modules, in their order; where securityfs is not mounted, those that the engine names."""
    try:
        text = Path("/sys/kernel/security/lsm").read_text(encoding="ascii")
    except OSError:
        return tuple(sorted(engine.security & {"apparmor", "selinux"}))
    return tuple(name for name in text.strip().split(",") if name)


def check_user(euid: int) -> None:
    """HostError for a user that cannot watch any container."""
    if euid != 0:
        raise HostError("capprofile must be root to watch a container", "run it with sudo")


def check_engine(engine: Engine, *, userns: str | None) -> None:
    """HostError for an engine whose containers cannot be watched from here, with the way out."""
    if any("podman" in str(part.get("Name", "")).lower() for part in engine.version.get("Components") or []):
        raise HostError("this docker is podman's: only Docker's own engine is supported", "install Docker's engine")
    if str(engine.info.get("OSType", "linux")) != "linux":
        raise HostError(f"the engine runs {engine.info['OSType']} containers", "switch it to Linux containers")
    if "rootless" in engine.security:
        raise HostError(
            "the engine is rootless: --privileged grants nothing on the host there",
            "use the rootful engine (DOCKER_HOST=unix:///var/run/docker.sock)",
        )
    if "userns" in engine.security and userns != "host":
        raise HostError(
            "the engine maps its users (userns-remap): --privileged does not work there either",
            "add --userns host to the command, or profile it on an engine without userns-remap",
        )
