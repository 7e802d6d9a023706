"""What this host can do, found by trying. Nothing that is tried remains: mounts are made in a child's own namespace.

Nothing here decides whether a workload can be profiled; `doctor.py` does.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from profiler import leftovers
from profiler.errors import HostError, ProfilerError
from profiler.kernel import bpf, capabilities, fanotify, namespaces, selinux
from profiler.kernel.audit import AuditLog
from profiler.kernel.filters import action_available, filters_of
from profiler.kernel.mountinfo import mounts_of
from profiler.witness import instance as tracing
from profiler.witness import tracefs

_SECURITYFS = Path("/sys/kernel/security")
_CGROUP = Path("/sys/fs/cgroup")
_AS_ROOT = "run capprofile as root, outside a container"


@dataclass(frozen=True)
class Probe:
    """One thing tried: its name, whether it works here, what was found, and what to do where it does not work."""

    name: str
    ok: bool
    detail: str
    mend: str


def probe_host() -> tuple[Probe, ...]:
    """Everything that capprofile asks of a host, in the order in which a run needs it. Takes well below a second.

    Never fails: what cannot be tried is a failed probe. Needs root to say more than that root is needed.
    """
    return (
        _pids(),
        _notification(),
        _ptrace(),
        *_in_own_mounts("tracefs", _tracing),
        _fanotify(),
        *_in_own_mounts("overlayfs", _overlayfs),
        _bounding_set(),
        _cgroup(),
        *_in_own_mounts("security modules", _security_modules),
        *_selinux(),
    )


def check_pids() -> None:
    """HostError where processes have other numbers here than in what the kernel's tracing reports.

    Nothing would be seen of a workload then, or another's processes would be taken for it; and what other capprofiles
    of this host are at would be taken for left behind.
    """
    probe = _pids()
    if not probe.ok:
        raise HostError(probe.detail, probe.mend)


def _pids() -> Probe:
    if namespaces.in_initial_pid_namespace():
        return Probe("pid namespace", True, "the initial one", "")
    return Probe(
        "pid namespace",
        False,
        "this process is in a PID namespace of its own, and the kernel's tracing numbers processes as the host does",
        "run capprofile outside of it (unshare, a container); in a container: docker run --pid=host --privileged",
    )


def cgroup_version() -> int:
    """2 where /sys/fs/cgroup is the unified hierarchy, 1 where it holds controllers' hierarchies, 0 without either."""
    if (_CGROUP / "cgroup.controllers").exists():
        return 2
    return 1 if any(mount.fstype == "cgroup" for mount in mounts_of()) else 0


# --------------------------------------------------------------------------------------------------------------------
# Trying in a child


def _in_own_mounts(name: str, work: Callable[[], Iterable[Probe]]) -> tuple[Probe, ...]:
    """The probes that `work` makes in a child whose mounts are its own; a failed probe `name` when it cannot."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            answer = json.dumps([asdict(probe) for probe in _isolated(name, work)]).encode()
            while answer:
                answer = answer[os.write(write, answer) :]
        finally:
            os._exit(0)  # never on into the parent's work
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    if not answer:
        return (Probe(name, False, "trying it ended the process that tried", _AS_ROOT),)
    return tuple(Probe(**fields) for fields in json.loads(answer))


def _isolated(name: str, work: Callable[[], Iterable[Probe]]) -> tuple[Probe, ...]:
    try:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.mount(None, "/", None, namespaces.MS_REC | namespaces.MS_PRIVATE)
        return tuple(work())
    except ProfilerError as error:
        return (Probe(name, False, error.message, error.hint),)
    except OSError as error:
        return (Probe(name, False, error.strerror or str(error), _AS_ROOT),)


# --------------------------------------------------------------------------------------------------------------------
# Seeing calls


def _notification() -> Probe:
    ok = action_available(bpf.RET_USER_NOTIF)
    return Probe(
        "user notification",
        ok,
        "SECCOMP_RET_USER_NOTIF" if ok else "the kernel does not know SECCOMP_RET_USER_NOTIF",
        "" if ok else "use Linux 5.5 or later, built with CONFIG_SECCOMP_FILTER",
    )


def _ptrace() -> Probe:
    """Seize a child and read its filters, which is what a run does."""
    try:
        scope = Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii").strip()
    except OSError:
        scope = ""
    found = f"yama ptrace_scope {scope}" if scope else "no yama"
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                signal.pause()
        finally:
            os._exit(0)
    try:
        filters_of(pid)
    except HostError as error:
        mend = "it stays forbidden until the next boot: boot without kernel.yama.ptrace_scope=3"
        return Probe("ptrace", False, f"{error.message} ({found})", mend if scope == "3" else error.hint)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return Probe("ptrace", True, found, "")


# --------------------------------------------------------------------------------------------------------------------
# Seeing capability checks


def _tracing() -> Iterable[Probe]:
    root = tracing.tracefs()
    name = leftovers.owner_tag()
    made = tracing.Instance(root, name)
    try:
        yield Probe("tracefs", True, f"an instance can be made in {root}", "")
        yield from _checks(root)
        yield _exists(
            "syscall exit events",
            root / "events/syscalls/sys_exit_mount",
            root / "events/raw_syscalls/sys_exit",
            mend="results of calls stay unknown: use a kernel with CONFIG_FTRACE_SYSCALLS",
        )
        yield _exists(
            "stacktrace option",
            made.path / "options/stacktrace",
            mend="checks cannot be told apart by their site: use a kernel with CONFIG_STACKTRACE",
        )
        yield _exists(
            "event-fork option",
            made.path / "options/event-fork",
            mend="children cannot be followed: use Linux 4.7 or later",
        )
    finally:
        made.remove()


def _checks(root: Path) -> Iterable[Probe]:
    event = (root / "events/capability/cap_capable/format").exists()
    mend = "use Linux 6.14 or later, or kprobes"
    yield Probe("cap_capable event", event, "capability:cap_capable" if event else "this kernel has none", mend)
    if event:
        return  # no kprobe is ever made then, so none is tried: it would patch the kernel's text for nothing
    kind = tracefs.probe()
    mend = "use Linux 6.14 or later, or a kernel with CONFIG_KPROBE_EVENTS and without lockdown"
    found = "cap_capable can be probed" if kind == "kprobe" else "a kprobe on cap_capable is refused, or there are none"
    yield Probe("kprobe events", kind == "kprobe", found, mend)


def _exists(name: str, *paths: Path, mend: str) -> Probe:
    present = next((path for path in paths if path.exists()), None)
    if present is None:
        return Probe(name, False, "this kernel has none", mend)
    return Probe(name, True, present.name, "")


# --------------------------------------------------------------------------------------------------------------------
# Seeing devices, running without an engine


def _fanotify() -> Probe:
    mend = "devices that are opened without a notified call stay unseen: use Linux 5.1 or later, as root"
    try:
        with fanotify.Group() as group:
            group.mark("/dev/null", fanotify.FAN_OPEN)
    except OSError as error:
        return Probe("fanotify", False, error.strerror or str(error), mend)
    return Probe("fanotify", True, "device nodes can be watched by file handle", "")


def _overlayfs() -> Iterable[Probe]:
    """An overlay whose layers are on a tmpfs of its own, mounted over a directory that every host has."""
    base = Path("/tmp")
    namespaces.mount("tmpfs", base, "tmpfs")
    layers = {name: base / name for name in ("lowerdir", "upperdir", "workdir")}
    for directory in (*layers.values(), base / "merged"):
        directory.mkdir()
    options = ",".join(f"{name}={path}" for name, path in layers.items())
    try:
        namespaces.mount("overlay", base / "merged", "overlay", 0, options)
    except OSError as error:
        mend = "the embedded sandbox needs it: load the module overlay, or use a kernel with CONFIG_OVERLAY_FS"
        yield Probe("overlayfs", False, error.strerror or str(error), mend)
    else:
        yield Probe("overlayfs", True, "can be mounted", "")


# --------------------------------------------------------------------------------------------------------------------
# What limits this host


def _bounding_set() -> Probe:
    known = {capabilities.name_of(number) for number in range(capabilities.last_cap() + 1)}
    missing = sorted(known - capabilities.sets_of().bounding)
    return Probe(
        "bounding set",
        not missing,
        f"all {len(known)} capabilities" if not missing else "lacks " + ", ".join(missing),
        "" if not missing else "nobody here can grant these: use a host whose root has them, if a workload needs one",
    )


def _cgroup() -> Probe:
    version = cgroup_version()
    mend = "mount a cgroup hierarchy at /sys/fs/cgroup: device rules and limits stand on it"
    return Probe("cgroup", version > 0, f"version {version}" if version else "none is mounted", "" if version else mend)


def _security_modules() -> Iterable[Probe]:
    """The modules that decide beside capabilities, and whether one of them confines ourselves."""
    if not (_SECURITYFS / "lsm").exists() and _SECURITYFS.is_dir():
        namespaces.mount("securityfs", _SECURITYFS, "securityfs")
    modules = _text(_SECURITYFS / "lsm").split(",")
    label = _text(Path("/proc/self/attr/current")).rstrip("\0\n ")
    confined = "apparmor" in modules and label not in {"", "unconfined"}
    yield Probe(
        "security modules",
        not confined,
        ", ".join(filter(None, modules)) + (f"; we are {label}" if label else ""),
        "capprofile itself is confined: start it from an unconfined process" if confined else "",
    )


def _selinux() -> Iterable[Probe]:
    """Whether SELinux is enforced, and whether it can be heard what it denies; nothing where there is none."""
    enforced = selinux.is_enforced()
    if enforced is None:
        return
    source = ""
    with suppress(OSError), closing(AuditLog()) as log:
        log.denials()
        source = log.source
    found = f"{'enforced' if enforced else 'permissive'}; " + (f"denials come from {source}" if source else "unheard")
    mend = "allow it to this process (audit_read), or stop auditd meanwhile: without, more reruns find label=disable"
    yield Probe("selinux", bool(source), found, "" if source else mend)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such module, or none that labels processes (EINVAL)
        return ""
