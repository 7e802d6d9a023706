"""Manifest v1: renders a report as the JSON document that other programs read, writes it, and reads it back.

The names are a contract (docs/manifest.md, manifest.schema.json): keys may be added to v1, never renamed or removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler import __version__, output
from profiler.catalogue.dangers import weight
from profiler.catalogue.paths import CONTROL_GROUPS
from profiler.errors import UsageError
from profiler.model import (
    AllowList,
    BindMount,
    Capability,
    Device,
    Observed,
    Privilege,
    Recipe,
    SecurityOption,
    Status,
    Syscalls,
    Sysctl,
    Verdict,
    opened_calls,
)
from profiler.report.evidence import clean, document_of
from profiler.report.interface import JudgedRequirement, Report
from profiler.report.labels import device_class_of

SCHEMA = "capprofile/manifest/v1"
SCHEMA_DOCUMENT = Path(__file__).with_name("manifest.schema.json")
_FAMILY = "capprofile/manifest/"
_SECCOMP = "seccomp="
_STATUS_ORDER = {Status.REQUIRED: 0, Status.UNPROVEN: 1, Status.OPTIONAL: 2}

# Flags of `docker run` that a recipe is made of, with the manifest's key for their values.
_PARTS = {
    "--cap-drop": "cap_drop",
    "--cap-add": "cap_add",
    "--device": "devices",
    "--device-cgroup-rule": "device_cgroup_rules",
    "--security-opt": "security_opt",
    "--sysctl": "sysctls",
    "--volume": "volumes",
    "--cgroupns": "cgroupns",
}


def in_order(requirements: tuple[JudgedRequirement, ...]) -> list[JudgedRequirement]:
    """Requirements as reports list them: what is required first, and within that the most dangerous first."""
    return sorted(
        requirements, key=lambda row: (_STATUS_ORDER[row.status], -weight(row.privilege), row.privilege.label)
    )


def verification_status(verdict: Verdict) -> str:
    """`verified`, `failed`, or `skipped` where no rerun was made."""
    if not verdict.runs:
        return "skipped"
    return "verified" if verdict.verified else "failed"


def is_proved(report: Report) -> bool:
    """Whether the recipe may be called minimal: each removal was seen to fail, and nothing was lost in the trace."""
    return report.verdict.verified and report.verdict.minimal and not any(report.trace.losses.values())


def labels_of(recipe: Recipe) -> list[str]:
    """The sorted labels of a recipe's members."""
    return sorted(privilege.label for privilege in recipe)


def _flag_values(docker_args: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each flag of the recipe with its value, whether written as two words or with `=`."""
    words = iter(docker_args)
    for word in words:
        flag, equals, value = word.partition("=")
        yield flag, value if equals else next(words, "")


def _recipe(report: Report) -> dict[str, Any]:
    """The recipe's parts are read off `docker_args`, so that they cannot say anything else than the flags do."""
    parts: dict[str, list[str]] = {key: [] for key in _PARTS.values()}
    for flag, value in _flag_values(report.docker_args):
        if flag in _PARTS:
            parts[_PARTS[flag]].append(clean(value))
    calls = opened_calls(report.verdict.recipe)
    return {
        "cap_drop": parts["cap_drop"] or ["ALL"],
        "cap_add": sorted(parts["cap_add"]),
        "devices": parts["devices"],
        "device_cgroup_rules": parts["device_cgroup_rules"],
        "security_opt": parts["security_opt"],
        "sysctls": dict(pair.split("=", 1) for pair in parts["sysctls"] if "=" in pair),
        "volumes": parts["volumes"],
        "cgroupns": "".join(parts["cgroupns"]),
        "syscalls": sorted(calls),
        "observed": _observed(report.verdict.observed),
        "privileges": labels_of(report.verdict.recipe),
        "docker_args": [clean(word) for word in report.docker_args],
        "docker_command": [clean(word) for word in report.docker_command],
        "apparmor_profile": _own_profile(report),
    }


def _own_profile(report: Report) -> dict[str, Any] | None:
    """The AppArmor profile that may take the place of `apparmor=unconfined`."""
    own = report.apparmor
    if own is None:
        return None
    return {"name": own.name, "file": clean(own.file), "allows": [clean(words) for words in own.allows]}


def _observed(observed: Observed | None) -> dict[str, Any] | None:
    if observed is None:
        return None
    return {
        "syscalls": list(observed.names),
        "workload": {name: clean(program) for name, program in sorted(observed.workload.items())},
        "runtime": list(observed.runtime),
        "incidental": dict(sorted(observed.incidental.items())),
        "i386": {name: clean(program) for name, program in sorted(observed.i386.items())},
    }


def _requirement(row: JudgedRequirement) -> dict[str, Any]:
    requirement = row.requirement
    return {
        "privilege": row.privilege.label,
        "alternatives": [labels_of(alternative) for alternative in requirement.alternatives],
        "status": row.status.value,
        "reason": clean(requirement.reason),
        "evidence": [document_of(piece) for piece in requirement.evidence],
    }


def _by_label(texts: Mapping[Privilege, str]) -> dict[str, str]:
    return {privilege.label: clean(text) for privilege, text in sorted(texts.items(), key=lambda item: item[0].label)}


def _verification(report: Report) -> dict[str, Any]:
    verdict = report.verdict
    return {
        "status": verification_status(verdict),
        "minimal": "proved" if is_proved(report) else "unproved",
        "runs": [
            {
                "privileges": labels_of(run.recipe),
                "exit_code": run.outcome.exit_code,
                "passed": run.passed,
                "seconds": round(run.outcome.seconds, 3),
                "timed_out": run.outcome.timed_out,
                "purpose": run.purpose,
            }
            for run in verdict.runs
        ],
        "passes": [clean(words) for words in verdict.passes],
        "optional": _by_label(verdict.optional),
        "denials": _by_label(verdict.denials),
    }


def render(report: Report) -> dict[str, Any]:
    """The manifest of `report`: only dictionaries, lists, strings, numbers, booleans and None."""
    facts, trace = report.facts, report.trace
    return {
        "schema": SCHEMA,
        "tool": {"name": "capprofile", "version": __version__},
        "host": {
            "kernel": facts.kernel,
            "engine": facts.engine,
            "engine_version": facts.engine_version,
            "lsms": list(facts.lsms),
            "witnesses": list(facts.witnesses),
            "not_granted": list(facts.not_granted),
            "cgroup_version": facts.cgroup_version,
        },
        "workload": {
            "engine": report.engine,
            "command": [clean(word) for word in report.command],
            "image": report.image,
            "image_id": report.image_id,
            "exit_code": trace.exit_code,
            "seconds": round(trace.seconds, 3),
            "processes": trace.processes,
        },
        "recipe": _recipe(report),
        "requirements": [_requirement(row) for row in in_order(report.requirements)],
        "verification": _verification(report),
        "losses": {name: count for name, count in sorted(trace.losses.items()) if count},
        "notes": [clean(note) for note in report.notes],
        "warnings": [clean(warning) for warning in report.all_warnings],
        "safer": [{"text": row.text, "flag": clean(row.flag), "reason": row.reason} for row in report.safer],
    }


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` as JSON to `path`, whole or not at all. Raises UsageError when the file system refuses."""
    output.write(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


# What a reader relies on: path of keys, and the type found there.
_NEEDED: tuple[tuple[tuple[str, ...], type], ...] = (
    (("workload",), dict),
    (("workload", "command"), list),
    (("recipe",), dict),
    (("recipe", "cap_add"), list),
    (("recipe", "devices"), list),
    (("recipe", "device_cgroup_rules"), list),
    (("recipe", "security_opt"), list),
    (("recipe", "sysctls"), dict),
    (("recipe", "docker_args"), list),
    (("recipe", "docker_command"), list),
    (("requirements",), list),
    (("verification",), dict),
    (("verification", "status"), str),
    (("verification", "runs"), list),
    (("losses",), dict),
)


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read: `document` is the JSON as it stands, with whatever keys this program does not know."""

    document: Mapping[str, Any]

    @property
    def requirements(self) -> list[Mapping[str, Any]]:
        """The rows of evidence."""
        return list(self.document["requirements"])

    @property
    def command(self) -> tuple[str, ...]:
        """The user's own command, as it was profiled."""
        return tuple(self.document["workload"]["command"])

    @property
    def seccomp_profile(self) -> str | None:
        """The path of the seccomp profile that belongs to the recipe, if there is one."""
        options = (
            option.removeprefix(_SECCOMP)
            for option in self.document["recipe"]["security_opt"]
            if option.startswith(_SECCOMP)
        )
        return next((path for path in options if path != "unconfined"), None)

    def recipe(self) -> Recipe:
        """The recipe as privileges. Nodes of a pool come as single devices beside the pool's rule."""
        parts = self.document["recipe"]
        members: set[Privilege] = {Capability(name.removeprefix("CAP_")) for name in parts["cap_add"]}
        for value in parts["devices"]:
            path, _, rest = value.partition(":")
            members.add(Device(path, rest.rpartition(":")[2] or "rwm"))
        members |= {device_class_of(rule) for rule in parts["device_cgroup_rules"]}
        members |= {
            SecurityOption(option)
            for option in parts["security_opt"]
            if not option.startswith(_SECCOMP) or option == f"{_SECCOMP}unconfined"
        }
        members |= {Sysctl(key, str(value)) for key, value in parts["sysctls"].items()}
        host_groups = bool(parts.get("cgroupns"))
        for value in parts.get("volumes") or ():
            path = value.partition(":")[0]
            members.add(BindMount(path, host_groups and path.startswith(CONTROL_GROUPS)))
        if parts.get("syscalls"):
            members.add(Syscalls(tuple(parts["syscalls"])))
        if parts.get("observed"):
            observed = parts["observed"]
            members.add(AllowList(tuple(observed["syscalls"]), bool(observed.get("i386"))))
        return frozenset(members)


def _check_shape(path: Path, document: Any) -> None:
    for keys, kind in _NEEDED:
        found = document
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, kind):
            raise UsageError(
                f"{path} is not a complete manifest: {'.'.join(keys)} is missing or not what v1 has there",
                "write it anew with capprofile run -o",
            )
    for row in document["requirements"]:
        if not isinstance(row, dict) or not isinstance(row.get("privilege"), str):
            raise UsageError(
                f"{path} is not a complete manifest: a requirement has no privilege",
                "write it anew with capprofile run -o",
            )


def load(path: Path) -> Manifest:
    """Read a manifest; keys that v1 does not have are kept and ignored.

    Raises UsageError when the file cannot be read, is not JSON, is another version's or lacks what v1 has.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "name a file that capprofile run -o wrote"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", "name a file that capprofile run -o wrote") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        if isinstance(schema, str) and schema.startswith(_FAMILY):
            raise UsageError(
                f"{path}: this is {schema}; this program reads {SCHEMA.removeprefix(_FAMILY)}",
                "read it with the capprofile that wrote it, or write it anew with capprofile run -o",
            )
        raise UsageError(f"{path} is no manifest of capprofile", "name a file that capprofile run -o wrote")
    _check_shape(path, document)
    manifest = Manifest(document)
    try:
        manifest.recipe()
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path}: its recipe makes no sense: {error}", "write it anew with capprofile run -o"
        ) from error
    return manifest
