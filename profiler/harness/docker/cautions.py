"""What is special about some flags of `docker run`: replaced by the recipe, kept back in our runs, unsafe, shared.

Decides from the command line alone and talks to nobody.
"""

from __future__ import annotations

from profiler.catalogue.paths import CONTROL_GROUPS
from profiler.harness.docker.arguments import DockerRun, Flag
from profiler.harness.docker.mounts import mounts
from profiler.kernel.mountinfo import below

RECIPE_FLAGS = frozenset({"privileged", "cap-add", "cap-drop", "device", "security-opt", "device-cgroup-rule"})
"""What the recipe answers instead of the user, but for what `is_replaced` keeps."""

OURS = frozenset({"detach", "rm", "cidfile", "restart", "detach-keys", "sig-proxy", "pull", "quiet", "help"})
"""Flags that our own runs go without: they run attached, remove what they made, and pull beforehand."""

_HOST_NAMESPACES = ("pid", "network", "ipc", "uts", "userns", "cgroupns")
_HOST_TREES = ("/", "/dev", "/proc", "/sys", "/etc", "/run", "/var/run", "/boot", "/root", "/var/lib/docker")
_KERNEL_TREES = ("/proc", "/sys")  # all below is the kernel's, which every container shares


def is_replaced(flag: Flag) -> bool:
    """Whether the recipe takes this flag's place.

    The user's own stay `no-new-privileges` (it only takes away), a label of their choice (`label=type:…`), CDI devices
    (`vendor.com/class=name`, more than a node), and a device under another name inside, which no trace would tell.
    """
    if flag.name == "security-opt":
        return not _is_no_new_privileges(flag.value) and not _is_label(flag.value)
    if flag.name == "device":
        return not _is_cdi(flag.value) and not _is_renamed(flag.value)
    return flag.name in RECIPE_FLAGS


def notes(run: DockerRun) -> tuple[str, ...]:
    """One line for each of the user's flags that is replaced, kept or treated otherwise than `docker run` would."""
    lines: dict[str, None] = {}
    for flag in run.flags:
        written = " ".join(flag.tokens)
        if flag.name in RECIPE_FLAGS:
            fate = "is replaced by the recipe" if is_replaced(flag) else "is kept as yours"
            lines[f"{written} {fate}"] = None
        elif flag.name == "gpus":
            lines[f"{written} is kept as yours: a GPU's hooks are more than devices"] = None
        elif flag.name == "detach" and run.is_set("detach"):
            lines["-d is kept in the printed command; while profiling the workload runs attached"] = None
        elif flag.name == "restart" and flag.value != "no":
            lines[f"{written} is kept in the printed command; while profiling nothing is restarted"] = None
        elif flag.name.startswith("health-") and not run.is_set("no-healthcheck"):
            lines["health checks are started by the engine, not by the workload: they are not traced"] = None
    return tuple(lines)


def warnings(run: DockerRun) -> tuple[str, ...]:
    """What no recipe can make safe, one line each: the container reaches the host by other ways than privileges."""
    lines: dict[str, None] = {}
    for name in _HOST_NAMESPACES:
        if run.value(name) == "host":
            lines[f"--{name}=host: the container shares the host's {_namespace(name)}"] = None
    if run.is_set("use-api-socket"):
        lines["--use-api-socket: who can talk to the engine is root on the host"] = None
    for mount in mounts(run):
        path = mount.path
        if mount.is_engine:
            lines[f"{path} is mounted: who can talk to the engine is root on the host"] = None
        elif below(path, CONTROL_GROUPS):
            lines[f"{path} of the host is mounted: who can write there limits, freezes and moves its processes"] = None
        elif path in _HOST_TREES or any(below(path, tree) for tree in _KERNEL_TREES):
            lines[f"{path} of the host is mounted: what lies there is the host's, whatever the recipe"] = None
    drops_all = any(value.upper() == "ALL" for value in run.values("cap-drop"))
    if run.values("cap-add") and not drops_all and not run.is_set("privileged"):
        lines["--cap-add without --cap-drop ALL adds to the engine's default capabilities"] = None
    return tuple(lines)


def shares_nothing(run: DockerRun) -> bool:
    """Whether two containers of this command can run at a time without meeting.

    They would meet in a name, a fixed port or address, or a shared network namespace; places that both can write are
    another matter (volumes.py).
    """
    if any(run.value(name) for name in ("name", "cidfile", "ip", "ip6", "mac-address", "volumes-from")):
        return False
    if any(value == "host" or value.startswith("container:") for value in run.values("network")):
        return False
    return not any(_is_fixed_port(value) for value in run.values("publish"))


def _is_no_new_privileges(option: str) -> bool:
    return option.replace(":", "=").partition("=")[0] == "no-new-privileges"


def _is_label(option: str) -> bool:
    key, _, value = option.replace(":", "=", 1).partition("=")
    return key == "label" and value != "disable"


def _is_cdi(device: str) -> bool:
    return not device.startswith("/") and "=" in device


def _is_renamed(device: str) -> bool:
    """`host:container[:access]` with two different paths; `/dev/x:rwm` has only one."""
    parts = device.split(":")
    return len(parts) > 1 and parts[1].startswith("/") and parts[1] != parts[0]


def _namespace(name: str) -> str:
    return {"pid": "processes", "uts": "host name", "ipc": "shared memory", "userns": "user ids"}.get(name, name)


def _is_fixed_port(published: str) -> bool:
    """Whether a `--publish` value (`[[ip:][host]:]container`, or `published=…,target=…`) names the host's port."""
    if "=" in published:
        return any(part.startswith("published=") for part in published.split(","))
    host = published.rpartition(":")[0]
    return bool(host) and not host.endswith(":")
