"""Renders a recipe as the flags of `docker run` that replace `--privileged`. Talks to nobody.

The order is fixed, so that equal recipes give equal command lines: capabilities, devices, rules, options, sysctls,
mounts.
"""

from __future__ import annotations

from profiler.model import BindMount, Capability, Device, DeviceClass, Recipe, SecurityOption, Sysctl, needs_profile

SECCOMP_UNCONFINED = "seccomp=unconfined"


def flags_of(recipe: Recipe, profile_path: str | None = None) -> tuple[str, ...]:
    """The flags for exactly `recipe`, beginning with `--cap-drop ALL`.

    `profile_path` is the seccomp profile for the recipe's `Syscalls` and `AllowList` (the docker client reads the file
    and sends its text). A recipe that switches seccomp off altogether needs no profile. Raises ValueError if the recipe
    needs one and there is none: without it the flags would not be this recipe.
    """
    flags = ["--cap-drop", "ALL"]
    for capability in sorted(p for p in recipe if isinstance(p, Capability)):
        flags += ["--cap-add", capability.name]
    for path, access in sorted(_nodes(recipe).items()):
        flags += ["--device", f"{path}:{path}:{access}"]
    # `--device` allows a node in the container's cgroup too: a rule is for nodes that come there by another way.
    rules = (p for p in recipe if isinstance(p, DeviceClass) and not p.paths)
    for pool in sorted(rules, key=lambda pool: pool.label):
        flags += ["--device-cgroup-rule", pool.label]
    for option in sorted(p for p in recipe if isinstance(p, SecurityOption)):
        flags += ["--security-opt", option.option]
    if needs_profile(recipe) and SecurityOption(SECCOMP_UNCONFINED) not in recipe:
        if profile_path is None:
            raise ValueError("a recipe with system calls needs the path of its seccomp profile")
        flags += ["--security-opt", f"seccomp={profile_path}"]
    for sysctl in sorted(p for p in recipe if isinstance(p, Sysctl)):
        flags += ["--sysctl", f"{sysctl.key}={sysctl.value}"]
    mounts = sorted(p for p in recipe if isinstance(p, BindMount))
    for mount in mounts:
        flags += ["--volume", f"{mount.path}:{mount.path}"]
    if any(mount.host_groups for mount in mounts):
        flags += ["--cgroupns", "host"]
    return tuple(flags)


def _nodes(recipe: Recipe) -> dict[str, str]:
    """Every node to create, once, with the union of the accesses."""
    nodes: dict[str, str] = {}
    for privilege in recipe:
        if isinstance(privilege, Device):
            paths: tuple[str, ...] = (privilege.path,)
        elif isinstance(privilege, DeviceClass):
            paths = privilege.paths
        else:
            continue
        for path in paths:
            union = nodes.get(path, "") + privilege.access
            nodes[path] = "".join(letter for letter in "rwm" if letter in union)
    return nodes
