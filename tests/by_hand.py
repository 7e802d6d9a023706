"""Runs a sample in Docker with a recipe spelled by hand, without any code of capprofile: the samples' ground truth.

A sample's expected.toml was found with this: from everything that the engine can grant, members were taken away for as
long as the sample passed (`python tests/by_hand.py find NAME`), and each one that stayed was seen to be needed
(`python tests/by_hand.py prove NAME`, and tests/engine/test_samples.py does so again). Needs root and Docker.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import images
from pace import SLOWER

# Calls that Docker's default filter denies to a container without capabilities (its documentation's list of what the
# default profile blocks), and which of them a capability opens again in the profile.
DEFAULT_DENIES = (
    "acct add_key bpf chroot clock_adjtime clock_settime delete_module fanotify_init finit_module fsconfig fsmount "
    "fsopen fspick init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mount mount_setattr "
    "move_mount name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open pivot_root process_vm_readv "
    "process_vm_writev quotactl reboot request_key set_mempolicy setdomainname sethostname setns settimeofday swapoff "
    "swapon syslog umount2 unshare userfaultfd vhangup"
)
DENIED = frozenset(DEFAULT_DENIES.split())
OPENED = {
    "DAC_READ_SEARCH": {"open_by_handle_at"},
    "SYS_ADMIN": {
        "bpf", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie", "mount", "mount_setattr",
        "move_mount", "name_to_handle_at", "open_tree", "perf_event_open", "quotactl", "setdomainname", "sethostname",
        "setns", "syslog", "umount2", "unshare",
    },
    "SYS_BOOT": {"reboot", "kexec_load", "kexec_file_load"},
    "SYS_CHROOT": {"chroot"},
    "SYS_MODULE": {"delete_module", "init_module", "finit_module"},
    "SYS_PACCT": {"acct"},
    "SYS_PTRACE": {"kcmp", "process_vm_readv", "process_vm_writev"},
    "SYS_RAWIO": {"iopl", "ioperm"},
    "SYS_TIME": {"settimeofday", "clock_settime", "clock_adjtime"},
    "SYS_NICE": {"set_mempolicy"},
    "SYS_TTY_CONFIG": {"vhangup"},
    "SYSLOG": {"syslog"},
}  # fmt: skip
DEVICE_PATTERNS = ("/dev/fuse", "/dev/loop-control", "/dev/loop[0-9]*", "/dev/net/tun", "/dev/kmsg")
# Dangerous ones first: what is tried first is taken away first.
DANGEROUS_FIRST = (
    "SYS_ADMIN SYS_MODULE SYS_RAWIO SYS_PTRACE SYS_BOOT MAC_ADMIN MAC_OVERRIDE DAC_OVERRIDE DAC_READ_SEARCH SETFCAP "
    "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND CHOWN FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE "
    "LINUX_IMMUTABLE MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW SETGID SETPCAP SETUID SYS_CHROOT SYS_NICE "
    "SYS_PACCT SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM"
)
CAPABILITIES = tuple(DANGEROUS_FIRST.split())


@dataclass(frozen=True)
class ByHand:
    """A recipe as expected.toml spells it: `devices` are fnmatch(3) patterns of nodes below /dev."""

    cap_add: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    syscalls: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()

    def without_each(self) -> Iterator[tuple[str, ByHand]]:
        """Each member's name, and the recipe without it."""
        for name in ("cap_add", "devices", "syscalls", "security_opt"):
            members = getattr(self, name)
            for member in members:
                yield member, replace(self, **{name: tuple(other for other in members if other != member)})


@dataclass(frozen=True)
class Sample:
    """A directory of sample_workloads/, read: see docs/samples.md for the keys."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)

    def recipes(self, apparmor: bool = False) -> list[ByHand]:
        """The expected recipe and, after it, its alternatives."""
        base = {key: tuple(self.expected[key]) for key in ("cap_add", "devices", "syscalls")}
        if apparmor and self.expected.get("apparmor_unconfined", False):
            base["security_opt"] = ("apparmor=unconfined",)
        changes = [
            {key: tuple(value) for key, value in alternative.items() if key != "because"}
            for alternative in self.expected.get("alternatives", ())
        ]
        return [ByHand(**{**base, **change}) for change in [{}, *changes]]

    def docker_flags(self) -> list[str]:
        """The sample's own flags of `docker run`."""
        return list(self.settings.get("docker", ()))


def profile(sample: Sample, manifest: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`capprofile run` with these options on the sample, as a user would call it."""
    image = images.sample(images.SAMPLES / sample.name)
    return subprocess.run(
        [sys.executable, "-m", "profiler.cli", "run", *options, "-o", str(manifest), "--",
         "docker", "run", "--rm", "--privileged", *sample.docker_flags(), image],
        check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=560 * SLOWER,
    )  # fmt: skip


def profiled(output: Path, script: str, *flags: str) -> tuple[dict[str, Any], str]:
    """The manifest that `capprofile run` writes to `output` for a shell script in busybox with these flags of `docker
    run` beside `--privileged`, and what it says. AssertionError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "profiler.cli", "run", "-o", str(output), "--",
         "docker", "run", "--rm", "--privileged", *flags, images.busybox(), "sh", "-ec", script],
        check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=250 * SLOWER,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(output.read_text("utf-8"))
    return document, done.stderr


def difference(recipe: dict[str, Any], expected: ByHand) -> str:
    """In words what the manifest's recipe has too much or too little; empty if it is the expected one."""
    words = []
    found_calls = set(recipe.get("syscalls", ()))
    for what, found, wanted in (
        ("capability", set(recipe["cap_add"]), set(expected.cap_add)),
        ("system call", found_calls, set(expected.syscalls)),
        ("security option", not_filters(recipe["security_opt"]), set(expected.security_opt)),
        ("sysctl", set(recipe["sysctls"]), set()),
    ):
        words += [f"{what} {name} too much" for name in sorted(found - wanted)]
        words += [f"{what} {name} missing" for name in sorted(wanted - found)]
    nodes = [device.split(":")[0] for device in recipe["devices"]]
    words += [f"device {node} too much" for node in nodes if not matches(node, expected.devices)]
    words += [
        f"device {wanted} missing" for wanted in expected.devices if not any(matches(n, (wanted,)) for n in nodes)
    ]
    return ", ".join(words)


def not_filters(options: list[str]) -> set[str]:
    """The security options but for the profile with the recipe's calls, whose path differs from run to run."""
    return {option for option in options if not option.startswith("seccomp=") or option == "seccomp=unconfined"}


def matches(node: str, patterns: tuple[str, ...]) -> bool:
    """Whether `node` matches one of the fnmatch(3) `patterns`."""
    return any(fnmatch.fnmatch(node, pattern) for pattern in patterns)


@functools.cache
def has_apparmor() -> bool:
    """Whether the engine confines its containers with AppArmor."""
    listing = subprocess.run(
        ["docker", "info", "--format", "{{.SecurityOptions}}"], check=True, capture_output=True, text=True
    )
    return "name=apparmor" in listing.stdout


def denies_user_namespaces(image: str) -> bool:
    """Whether nothing but the engine's AppArmor profile keeps a container of `image` from making a user namespace."""

    def refused(*flags: str) -> bool:
        flags = ("--security-opt", "seccomp=unconfined", *flags)
        words = ["docker", "run", "--rm", *flags, image, "unshare", "-U", "true"]
        return subprocess.run(words, check=False, capture_output=True).returncode != 0

    return refused() and not refused("--security-opt", "apparmor=unconfined")


def read_sample(directory: Path) -> Sample:
    """Read workload.toml and expected.toml of `directory`."""
    read = {name: tomllib.loads((directory / f"{name}.toml").read_text("utf-8")) for name in ("workload", "expected")}
    return Sample(directory.name, read["workload"], read["expected"])


def samples() -> list[Sample]:
    """Every sample, by name."""
    return [read_sample(path.parent) for path in sorted(images.SAMPLES.glob("*/workload.toml"))]


def nodes(patterns: tuple[str, ...]) -> list[str]:
    """The device nodes of this host that match one of `patterns`."""
    return sorted(str(path) for path in Path("/dev").rglob("*") if any(fnmatch.fnmatch(path, p) for p in patterns))


@contextmanager
def filter_option(recipe: ByHand, unconfined: bool) -> Iterator[list[str]]:
    """The flags for the recipe's calls: none for the default filter, else a profile that denies only what the default
    one would deny with these capabilities, less the recipe's calls."""
    if unconfined:
        yield ["--security-opt", "seccomp=unconfined"]
        return
    if not recipe.syscalls:
        yield []
        return
    opened = set().union(*(OPENED.get(capability, set()) for capability in recipe.cap_add))
    denied = sorted(DENIED - opened - set(recipe.syscalls))
    rule = {"names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    with tempfile.NamedTemporaryFile("w", prefix="capprofile-filter-", suffix=".json") as profile:
        json.dump({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}, profile)
        profile.flush()
        yield ["--security-opt", f"seccomp={profile.name}"]


def run(sample: Sample, recipe: ByHand, *, unconfined: bool = False) -> subprocess.CompletedProcess[bytes]:
    """Run the sample with exactly `recipe` and return how it ended; no container stays, also after a time-out (124)."""
    image = images.sample(images.SAMPLES / sample.name)
    command = ["docker", "create", "--cap-drop", "ALL"]
    for capability in recipe.cap_add:
        command += ["--cap-add", capability]
    for node in nodes(recipe.devices):
        command += ["--device", node]
    for option in recipe.security_opt:
        command += ["--security-opt", option]
    with filter_option(recipe, unconfined) as filtering:
        created = subprocess.run(
            [*command, *filtering, *sample.docker_flags(), image], check=True, capture_output=True, text=True
        )
        container = created.stdout.split()[-1]
        try:
            return subprocess.run(
                ["docker", "start", "--attach", container],
                check=False,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=sample.settings.get("seconds", 30) * SLOWER,
            )
        except subprocess.TimeoutExpired as late:
            return subprocess.CompletedProcess(late.cmd, 124, late.stdout or b"", late.stderr or b"")
        finally:
            subprocess.run(["docker", "rm", "--force", "--volumes", container], check=False, capture_output=True)


def smallest(items: list[str], passes: Callable[[list[str]], bool]) -> list[str]:
    """Those of `items` without any one of which `passes` is false; the first ones are given up first."""

    def need(part: list[str], rest: list[str]) -> list[str]:
        if not part or passes(rest):
            return []
        if len(part) == 1:
            return part
        first, second = part[: len(part) // 2], part[len(part) // 2 :]
        kept = need(first, second + rest)
        return kept + need(second, kept + rest)

    return need(items, [])


def find(sample: Sample) -> ByHand:
    """Take everything away that the sample passes without, from all that this engine grants."""
    granted = [name for name in CAPABILITIES if _grants(name)]
    broad = ByHand(cap_add=tuple(granted), devices=DEVICE_PATTERNS)
    unconfined = run(sample, broad).returncode != 0
    if unconfined and run(sample, broad, unconfined=True).returncode != 0:
        raise SystemExit(f"{sample.name} fails with everything")

    def passes(recipe: ByHand, unconfined: bool = unconfined) -> bool:
        return run(sample, recipe, unconfined=unconfined).returncode == 0

    caps = smallest(granted, lambda some: passes(replace(broad, cap_add=tuple(some))))
    lean = replace(broad, cap_add=tuple(caps))
    lean = replace(lean, devices=tuple(smallest(list(lean.devices), lambda d: passes(replace(lean, devices=tuple(d))))))
    if unconfined:
        calls = smallest(sorted(DENIED), lambda some: passes(replace(lean, syscalls=tuple(some)), unconfined=False))
        lean = replace(lean, syscalls=tuple(calls))
    return lean


def _grants(capability: str) -> bool:
    """Whether this process could hand it out: an engine cannot grant what it lacks itself."""
    header = Path("/usr/include/linux/capability.h").read_text("utf-8")
    number = re.search(rf"^#define\s+CAP_{capability}\s+(\d+)", header, re.MULTILINE)
    bounding = re.search(r"^CapBnd:\s+(\w+)", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)
    return number is not None and bounding is not None and bool(int(bounding[1], 16) >> int(number[1]) & 1)


def prove(sample: Sample) -> list[str]:
    """What is wrong with the expected recipes (nothing: the list is empty)."""
    wrong = []
    for recipe in sample.recipes():
        done = run(sample, recipe)
        if done.returncode != sample.expected["exit_code"]:
            wrong.append(f"{recipe} ends with {done.returncode}: {done.stderr.decode(errors='replace')[-300:]}")
        for member, less in recipe.without_each():
            if run(sample, less).returncode == sample.expected["exit_code"]:
                wrong.append(f"{member} is not needed")
    return wrong


if __name__ == "__main__":
    for argument in sys.argv[2:] or [one.name for one in samples()]:
        chosen = Sample(argument, tomllib.loads((images.SAMPLES / argument / "workload.toml").read_text("utf-8")))
        if sys.argv[1] == "find":
            print(argument, find(chosen), flush=True)
        else:
            print(argument, prove(read_sample(images.SAMPLES / argument)) or "holds", flush=True)
