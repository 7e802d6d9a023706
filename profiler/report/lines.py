"""The recipe in the words of other programs: docker, setpriv, systemd-run, compose and Kubernetes."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence

from profiler.model import BindMount, Capability, Device, DeviceClass, Recipe, SecurityOption, Sysctl
from profiler.report.evidence import printable
from profiler.report.manifest import Manifest


def _capabilities(recipe: Recipe) -> list[str]:
    return sorted(member.name for member in recipe if isinstance(member, Capability))


def setpriv_line(recipe: Recipe, command: Sequence[str]) -> tuple[str, ...]:
    """The words of a setpriv(1) command that runs `command` as root with exactly the capabilities of `recipe`.

    The bounding set is what root's permitted set becomes when a program is executed, once nothing is inheritable
    (capabilities(7), "Capabilities and execution of programs by root"). Devices are out of setpriv's reach.
    """
    bounding = ",".join(["-all", *(f"+{name.lower()}" for name in _capabilities(recipe))])
    return ("setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--ambient-caps=-all", "--", *command)


def systemd_run_line(recipe: Recipe, command: Sequence[str]) -> tuple[str, ...]:
    """The words of a systemd-run(1) command that runs `command` in a transient service with `recipe`.

    Capabilities and devices are bounded; a service has neither seccomp filter nor masked paths that would need opening.
    It starts in the caller's directory, as the profiled command did: services start in `/` otherwise.
    """
    properties = ["CapabilityBoundingSet=" + " ".join(f"CAP_{name}" for name in _capabilities(recipe))]
    properties.append("DevicePolicy=closed")
    for member in sorted(recipe, key=lambda privilege: privilege.label):
        match member:
            case Device(path, access):
                properties.append(f"DeviceAllow={path} {access}")
            case DeviceClass(kind, major, minor, access):
                names = {"b": "block", "c": "char"}
                node = f"{names[kind]}-{major}" if minor is None else f"/dev/{names[kind]}/{major}:{minor}"
                properties.append(f"DeviceAllow={node} {access}")
            case _:
                continue
    flags = [word for text in properties for word in ("-p", text)]
    return ("systemd-run", "--pipe", "--wait", "--collect", "--same-dir", *flags, "--", *command)


def shell_lines(words: Sequence[str], width: int) -> str:
    """`words` quoted for a shell; over several lines ending in a backslash where one would be wider than `width`.

    A flag and the word after it stay together. No line is broken inside a word.
    """
    quoted = [_quoted(word) for word in words]
    line = " ".join(quoted)
    if len(line) <= width:
        return line
    lines: list[str] = []
    current = ""
    for piece in _pairs(quoted):
        if current and len(current) + 1 + len(piece) > width - 2:
            lines.append(current)
            current = f"  {piece}"
        else:
            current = f"{current} {piece}" if current else piece
    return " \\\n".join([*lines, current])


def _quoted(word: str) -> str:
    """As shlex.quote, but what a terminal would not show as it is (control characters, bytes that are no UTF-8) is
    spelled in `$'…'`, which bash, ksh, zsh and POSIX's shell of 2024 read."""
    if all(character.isprintable() or character == "\n" for character in word):
        return shlex.quote(word)
    spelled = []
    for character in word:
        if character in "\\'":
            spelled.append(f"\\{character}")
        elif character.isprintable():
            spelled.append(character)
        else:  # three octal digits: a hexadecimal escape would take following digits along
            spelled += [f"\\{byte:03o}" for byte in os.fsencode(character)]
    return f"$'{''.join(spelled)}'"


def _pairs(quoted: Sequence[str]) -> Iterator[str]:
    waiting = ""
    for word in quoted:
        is_flag = word.startswith("-") and "=" not in word and word != "--"
        if waiting and not word.startswith("-"):
            yield f"{waiting} {word}"
            waiting = ""
            continue
        if waiting:
            yield waiting
        waiting = word if is_flag else ""
        if not is_flag:
            yield word
    if waiting:
        yield waiting


def _yaml(value: str) -> str:
    """A YAML scalar: JSON's strings are YAML's double-quoted ones (YAML 1.2, section 1.3)."""
    return json.dumps(value)


def _yaml_list(key: str, values: Iterable[str], indent: str) -> list[str]:
    items = list(values)
    return [f"{indent}{key}:", *(f"{indent}  - {_yaml(item)}" for item in items)] if items else []


def _comment(text: str, indent: str = "") -> str:
    return f"{indent}# {printable(text)}"


def docker(manifest: Manifest) -> str:
    """The ready `docker run` command; for a workload outside an engine the flags, with IMAGE to be filled in."""
    recipe = manifest.document["recipe"]
    words = recipe["docker_command"] or ["docker", "run", "--rm", *recipe["docker_args"], "IMAGE", *manifest.command]
    return shell_lines(words, 100) + "\n"


def setpriv(manifest: Manifest) -> str:
    """The setpriv line for the profiled command, with a comment on what setpriv cannot bound."""
    recipe = manifest.recipe()
    beyond = sorted(member.label for member in recipe if not isinstance(member, Capability))
    note = [_comment(f"setpriv bounds capabilities only; the recipe also has: {', '.join(beyond)}")] if beyond else []
    return "\n".join([*note, shell_lines(setpriv_line(recipe, _bare(manifest)), 100), ""])


def systemd(manifest: Manifest) -> str:
    """The systemd-run line for the profiled command."""
    return shell_lines(systemd_run_line(manifest.recipe(), _bare(manifest)), 100) + "\n"


def _bare(manifest: Manifest) -> tuple[str, ...]:
    """The command outside an engine; a word in capitals stands for it where the workload came from an image."""
    return ("COMMAND",) if manifest.document["workload"].get("image") else manifest.command


def compose(manifest: Manifest) -> str:
    """The keys of a Compose service that replace `privileged: true`."""
    recipe = manifest.document["recipe"]
    image = manifest.document["workload"].get("image") or "IMAGE"
    lines = [
        "services:",
        "  workload:",
        f"    image: {_yaml(image)}",
        *_yaml_list("cap_drop", recipe.get("cap_drop", ["ALL"]), "    "),
        *_yaml_list("cap_add", recipe["cap_add"], "    "),
        *_yaml_list("devices", recipe["devices"], "    "),
        *_yaml_list("device_cgroup_rules", recipe["device_cgroup_rules"], "    "),
        *_yaml_list("security_opt", recipe["security_opt"], "    "),
    ]
    lines += _yaml_list("volumes", recipe.get("volumes") or (), "    ")
    if recipe.get("cgroupns"):
        lines.append(f"    cgroup: {recipe['cgroupns']}")
    if recipe["sysctls"]:
        lines += ["    sysctls:", *(f"      {_yaml(key)}: {_yaml(str(v))}" for key, v in recipe["sysctls"].items())]
    return "\n".join([*lines, ""])


def kubernetes(manifest: Manifest) -> str:
    """The parts of a pod's specification that replace `privileged: true`, with comments on what Kubernetes lacks."""
    recipe = manifest.recipe()
    options = {member.option for member in recipe if isinstance(member, SecurityOption)}
    nodes = sorted(member.label for member in recipe if isinstance(member, Device | DeviceClass))
    sysctls = sorted(member for member in recipe if isinstance(member, Sysctl))
    mounts = sorted(member for member in recipe if isinstance(member, BindMount))
    image = manifest.document["workload"].get("image") or "IMAGE"
    lines = ["spec:"]
    if "systempaths=unconfined" in options:
        lines.append("  hostUsers: false  # required by procMount: Unmasked")
    if sysctls:
        lines += ["  securityContext:", "    sysctls:"]
        for sysctl in sysctls:
            lines += [f"      - name: {_yaml(sysctl.key)}", f"        value: {_yaml(sysctl.value)}"]
    lines += ["  containers:", "    - name: workload", f"      image: {_yaml(image)}"]
    if "writable-cgroups=true" in options:
        lines.append(_comment("Kubernetes cannot make control groups writable: the node's runtime can", " " * 6))
    if nodes:
        lines.append(_comment(f"Kubernetes grants devices through a device plugin only: {', '.join(nodes)}", " " * 6))
    lines += [
        "      securityContext:",
        "        privileged: false",
        "        allowPrivilegeEscalation: true  # as in the profiled run: setuid programs work",
        "        capabilities:",
        '          drop: ["ALL"]',
        *_yaml_list("add", _capabilities(recipe), " " * 10),
        *_seccomp(manifest, options),
    ]
    if "apparmor=unconfined" in options:
        lines += ["        appArmorProfile:", "          type: Unconfined"]
    if "label=disable" in options:
        lines += ["        seLinuxOptions:", "          type: spc_t"]
    if "systempaths=unconfined" in options:
        lines.append("        procMount: Unmasked")
    if mounts:
        lines.append("      volumeMounts:")
        for number, mount in enumerate(mounts):
            lines += [f"        - name: system-{number}", f"          mountPath: {_yaml(mount.path)}"]
        lines.append("  volumes:")
        for number, mount in enumerate(mounts):
            lines += [f"    - name: system-{number}", "      hostPath:", f"        path: {_yaml(mount.path)}"]
    return "\n".join([*lines, ""])


def _seccomp(manifest: Manifest, options: set[str]) -> list[str]:
    head = "        seccompProfile:"
    if "seccomp=unconfined" in options:
        return [head, "          type: Unconfined"]
    profile = manifest.seccomp_profile
    if profile is None:
        return [head, "          type: RuntimeDefault"]
    name = profile.rpartition("/")[2]
    return [
        _comment(f"copy {profile} to the node: /var/lib/kubelet/seccomp/{name}", " " * 8),
        head,
        "          type: Localhost",
        f"          localhostProfile: {_yaml(name)}",
    ]


FORMATS: dict[str, Callable[[Manifest], str]] = {
    "docker": docker,
    "compose": compose,
    "kubernetes": kubernetes,
    "systemd": systemd,
    "setpriv": setpriv,
}
