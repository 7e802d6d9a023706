"""The evidence of a manifest, readable: what a privilege lets its holder do, and why it is needed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from profiler.catalogue.capability_texts import ALLOWS
from profiler.catalogue.dangers import reason
from profiler.catalogue.functions import FUNCTIONS
from profiler.errors import UsageError
from profiler.model import (
    AllowList,
    BindMount,
    Capability,
    Device,
    DeviceClass,
    Privilege,
    SecurityOption,
    Syscalls,
    Sysctl,
)
from profiler.report.evidence import Document, headline, printable, tellingness
from profiler.report.labels import privilege_of, same_privilege
from profiler.report.manifest import Manifest

_ARGV_SHOWN = 200  # characters of a command line
_STACK_SHOWN = 8  # kernel functions of a check


def explain(manifest: Manifest, privilege: str | None = None) -> str:
    """Every requirement of `manifest` with its evidence, or those of one privilege.

    `privilege` may be `SYS_ADMIN`, `CAP_SYS_ADMIN`, `cap_sys_admin`, a device's path, a filtered call's name or a
    label as the table prints it; a privilege that the recipe answers with another one is found too. Raises UsageError,
    listing what the manifest has, when nothing fits.
    """
    rows = manifest.requirements
    if privilege is not None:
        rows = _chosen(rows, privilege)
    elif not rows:
        return "no requirement was found: this workload needs no privilege\n" + "".join(_summary(manifest))
    blocks = ["\n".join(printable(line) for line in _block(manifest, row)) for row in rows]
    return "\n\n".join(blocks) + "\n" + ("" if privilege is not None else "\n" + "".join(_summary(manifest)))


def _chosen(rows: list[Mapping[str, Any]], words: str) -> list[Mapping[str, Any]]:
    named = [row for row in rows if same_privilege(row["privilege"], words)]
    if not named:
        named = [
            row
            for row in rows
            if any(
                same_privilege(label, words) for alternative in row.get("alternatives") or () for label in alternative
            )
        ]
    if not named:
        known = ", ".join(dict.fromkeys(printable(row["privilege"]) for row in rows)) or "nothing"
        raise UsageError(f"the manifest has no requirement for {printable(words)}", f"it has: {known}")
    return named


def _lets(privilege: Privilege) -> str:
    match privilege:
        case Capability(name):
            return ALLOWS.get(name, "something that this program does not know yet")
        case Device(path, access):
            return f"use the device node {path} ({access})"
        case DeviceClass(kind, major, minor, access) if minor is not None:
            return f"use the device {kind} {major}:{minor} ({access}), whatever path its node has"
        case DeviceClass(kind, major, _, access):
            return f"use any device {kind} {major}:* ({access})"
        case Syscalls(names):
            return f"make the system calls {', '.join(names)}, which the engine's default filter denies"
        case AllowList(names):
            return f"make {len(names)} system calls and no others"
        case SecurityOption(option):
            return f"run with {option}"
        case Sysctl(key, value):
            return f"start with {key} = {value}"
        case BindMount(path):
            return f"write to {path} of the host, which is mounted into the container"


def _block(manifest: Manifest, row: Mapping[str, Any]) -> Iterator[str]:
    label = row["privilege"]
    privilege = privilege_of(label)
    yield f"{label}: {row.get('status', 'unproven')}"
    yield f"  lets its holder   {_lets(privilege)}"
    yield f"  its danger        {reason(privilege)}"
    if row.get("reason"):
        yield f"  needed because    {row['reason']}"
    others = [" + ".join(labels) for labels in row.get("alternatives") or () if list(labels) != [label]]
    if others:
        yield f"  would do as well  {' | '.join(others)}"
    yield f"  the reruns        {_reruns(manifest, row)}"
    evidence = sorted(row.get("evidence") or (), key=tellingness, reverse=True)
    for piece in evidence:
        yield from _piece(piece)
    if not evidence:
        yield "  (no evidence was recorded)"


def _reruns(manifest: Manifest, row: Mapping[str, Any]) -> str:
    """What the reruns showed of the row's privilege: with it, and without it."""
    label = row["privilege"]
    verification = manifest.document["verification"]
    denial = (verification.get("denials") or {}).get(label)
    if denial:
        return f"without it: {denial}"
    tried = (verification.get("optional") or {}).get(label)
    if tried:
        return f"pass without it; it was asked for {tried}"
    without = [run for run in verification["runs"] if label not in run.get("privileges", ())]
    passed = sum(1 for run in without if run.get("passed"))
    if not without:
        return "were all made with it: its removal was not tried"
    return f"without it: {len(without)} made, {passed} passed"


def _piece(piece: Document) -> Iterator[str]:
    yield f"  · {headline(piece)}"
    if piece.get("path"):
        yield f"      path    {piece['path']}"
    process = piece.get("process") or {}
    if process:
        words = " ".join(process.get("argv") or ())
        command = f": {words[:_ARGV_SHOWN]}{'…' if len(words) > _ARGV_SHOWN else ''}" if words else ""
        uid = process.get("uid", -1)
        user = f", uid {uid}" if isinstance(uid, int) and uid >= 0 else ""
        program = process.get("exe") or "a program that was not seen"
        yield f"      by      {program} (pid {process.get('pid')}{user}){command}"
        if process.get("chain"):
            yield f"      below   {' ← '.join(process['chain'])}"
    for check in piece.get("kernel_checks") or ():
        yield f"      kernel  {_check(check)}"
        stack = check.get("stack") or ()
        if stack:
            yield f"              {' ← '.join(stack[:_STACK_SHOWN])}{' ← …' if len(stack) > _STACK_SHOWN else ''}"


def _check(check: Document) -> str:
    answer = "granted" if check.get("granted") else "denied"
    site = str(check.get("site"))
    span = FUNCTIONS.get(site.partition(".")[0])  # a compiler's copy of a function is named function.constprop.0
    remarks = [f"there {span.words}"] if span is not None else []
    remarks += [
        text
        for key, text in (
            ("borrowed", "with credentials that are not the process's own"),
            ("foreign_namespace", "against another user namespace"),
        )
        if check.get(key)
    ]
    return f"{check.get('capability')} {answer} in {site}" + (f" ({', '.join(remarks)})" if remarks else "")


def _summary(manifest: Manifest) -> Iterator[str]:
    verification = manifest.document["verification"]
    yield f"verification: {verification['status']}, minimal: {verification.get('minimal', 'unproved')}\n"
    for name, count in manifest.document["losses"].items():
        yield printable(f"lost: {name} ×{count}") + "\n"
    for row in manifest.document.get("safer") or ():
        flag = f" ({row.get('flag')})" if row.get("flag") else ""
        yield printable(f"safer: {row.get('text')}{flag}: {row.get('reason')}") + "\n"
