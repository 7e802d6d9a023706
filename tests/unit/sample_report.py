"""Reports built by hand for the tests of `report/`: one of each kind of privilege and evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from profiler.catalogue.safer import Advice
from profiler.harness.docker.flags import flags_of
from profiler.model import (
    Capability,
    Device,
    DeviceClass,
    DeviceUse,
    Doubt,
    HostFacts,
    KernelCheck,
    Observation,
    Outcome,
    Privilege,
    Process,
    RawCall,
    Requirement,
    Rerun,
    SecurityOption,
    Status,
    Syscalls,
    Sysctl,
    Trace,
    Verdict,
    needs_profile,
)
from profiler.report.interface import JudgedRequirement, Report

SYS_ADMIN = Capability("SYS_ADMIN")
DAC_READ_SEARCH = Capability("DAC_READ_SEARCH")
FUSE = Device("/dev/fuse", "rw")
LOOP = DeviceClass("b", 7, None, "rw", ("/dev/loop0", "/dev/loop1"))
KEYCTL = Syscalls(("keyctl",))
MASKED = SecurityOption("systempaths=unconfined")
PORTS = Sysctl("net.ipv4.ip_unprivileged_port_start", "80")

MOUNT = Process(4711, "/bin/mount", ("mount", "-t", "tmpfs", "none", "/mnt"), 0, ("/bin/sh",))
MOUNTED = Observation(
    "mount",
    ('"none"', '"/mnt"', '"tmpfs"', "0", "NULL"),
    0,
    "/mnt",
    MOUNT,
    (KernelCheck("SYS_ADMIN", True, "may_mount", ("ns_capable", "may_mount", "path_mount", "__x64_sys_mount")),),
)
READ = Observation(
    "openat",
    (),
    None,
    None,
    Process(4712, "/bin/cat", ("cat", "/secret"), 1000, ("/bin/sh",)),
    (KernelCheck("DAC_READ_SEARCH", True, "generic_permission"),),
    count=3,
)
USED = DeviceUse("/dev/fuse", "c", 10, 229, "rw", Process(4713, "/bin/sshfs"))
LOOPED = DeviceUse("/dev/loop0", "b", 7, 0, "rw", MOUNT)
FILTERED = RawCall(
    "keyctl", 250, (0, 1, 0, 0, 0, 0), Process(4714, "/bin/keyctl"), -1, 1, ("KEYCTL_JOIN_SESSION_KEYRING", '"mine"')
)

ROWS: dict[Privilege, JudgedRequirement] = {
    SYS_ADMIN: JudgedRequirement(
        SYS_ADMIN,
        Requirement((frozenset({SYS_ADMIN}),), "mounting a file system", Doubt.CERTAIN, (MOUNTED,)),
        Status.REQUIRED,
    ),
    DAC_READ_SEARCH: JudgedRequirement(
        DAC_READ_SEARCH,
        Requirement(
            (frozenset({DAC_READ_SEARCH}), frozenset({Capability("DAC_OVERRIDE")})),
            "reading a file of another user",
            Doubt.LIKELY,
            (READ,),
        ),
        Status.REQUIRED,
    ),
    FUSE: JudgedRequirement(
        FUSE, Requirement((frozenset({FUSE}),), "the node was opened", Doubt.LIKELY, (USED,)), Status.REQUIRED
    ),
    LOOP: JudgedRequirement(
        LOOP, Requirement((frozenset({LOOP}),), "a free loop device", Doubt.LIKELY, (LOOPED,)), Status.UNPROVEN
    ),
    KEYCTL: JudgedRequirement(
        KEYCTL, Requirement((frozenset({KEYCTL}),), "the filter denies it", Doubt.LIKELY, (FILTERED,)), Status.REQUIRED
    ),
    MASKED: JudgedRequirement(
        MASKED, Requirement((frozenset({MASKED}),), "a masked path", Doubt.LIKELY), Status.UNPROVEN
    ),
    PORTS: JudgedRequirement(PORTS, Requirement((frozenset({PORTS}),), "a low port", Doubt.LIKELY), Status.REQUIRED),
}
FACTS = HostFacts("6.1.0", "docker", "20.10.24", ("capability", "yama"), ("tracefs",), frozenset({"SYS_ADMIN"}), (), 1)


def report(
    members: Iterable[Privilege] = (SYS_ADMIN,),
    *,
    verified: bool = True,
    minimal: bool = True,
    runs: int = 2,
    losses: Mapping[str, int] | None = None,
    optional: Mapping[Privilege, str] | None = None,
    native: bool = False,
    command: tuple[str, ...] = ("docker", "run", "--privileged", "image", "mount"),
    **changed: Any,
) -> Report:
    """A report whose recipe is `members`, rerun `runs` times (the last one with exactly the recipe)."""
    recipe = frozenset(members)
    profile = "manifest.seccomp.json" if needs_profile(recipe) else None
    args = flags_of(recipe, profile)
    reruns = tuple(Rerun(recipe, Outcome(0 if verified else 1, 0.75), verified, "verify") for _ in range(runs))
    fields: dict[str, Any] = {
        "facts": FACTS,
        "engine": "native" if native else "docker",
        "command": command,
        "image": "" if native else "image",
        "image_id": "" if native else "sha256:1234",
        "trace": Trace((MOUNTED, READ), (USED,), (FILTERED,), losses or {}, 0, 0.8, 3),
        "requirements": tuple(ROWS[member] for member in recipe if member in ROWS),
        "verdict": Verdict(recipe, verified, minimal, reruns, optional or {}, {}),
        "docker_args": args,
        "docker_command": () if native else ("docker", "run", *args, "image", "mount"),
        "safer": (Advice("let the engine mount the tmpfs", "--tmpfs /mnt", "needs no SYS_ADMIN"),),
        "warnings": ("the Docker socket is mounted",),
    }
    return Report(**(fields | changed))


EVERYTHING: tuple[Privilege, ...] = (SYS_ADMIN, DAC_READ_SEARCH, FUSE, LOOP, KEYCTL, MASKED, PORTS)
