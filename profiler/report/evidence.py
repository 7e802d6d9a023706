"""One piece of evidence: as the manifest's dictionary, and as a line for people. Table and `explain` share it.

Whatever comes from the workload (paths, arguments, program names) may hold any byte: `clean` makes it valid UTF-8 for
JSON, `printable` keeps it from driving the user's terminal.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Any

from profiler.model import DeviceUse, Evidence, KernelCheck, LabelDenial, Observation, Process, RawCall

Document = Mapping[str, Any]
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` as valid UTF-8: a byte that was not (Python's surrogate escape) becomes the four characters `\\xNN`."""
    return _SURROGATE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def printable(text: str) -> str:
    """`text` as one line without control characters: each becomes its Python escape (`\\n`, `\\x1b`)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in clean(text))


def _process(process: Process) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "exe": clean(process.exe),
        "argv": [clean(word) for word in process.argv],
        "uid": process.uid,
        "chain": [clean(program) for program in process.chain],
    }


def _check(check: KernelCheck) -> dict[str, Any]:
    return {
        "capability": check.capability,
        "granted": check.granted,
        "site": check.site,
        "stack": list(check.stack),
        "borrowed": check.borrowed,
        "foreign_namespace": check.foreign_namespace,
    }


def document_of(piece: Evidence) -> dict[str, Any]:
    """The manifest's `evidence` entry. Devices have an additional `device`, filtered calls an additional `filtered`,
    what SELinux denied an additional `label`."""
    common: dict[str, Any] = {"process": _process(piece.process), "kernel_checks": [], "count": piece.count}
    match piece:
        case Observation():
            return {
                "syscall": piece.call,
                "args": [clean(arg) for arg in piece.args],
                "result": piece.result,
                "path": None if piece.path is None else clean(piece.path),
                **common,
                "kernel_checks": [_check(check) for check in piece.checks],
            }
        case DeviceUse():
            return {
                "syscall": None,
                "args": [],
                "result": None,
                "path": clean(piece.path),
                **common,
                "device": {
                    "kind": piece.kind,
                    "major": piece.major,
                    "minor": piece.minor,
                    "access": piece.access,
                    "made": piece.made,
                    "bound": piece.bound,
                },
            }
        case RawCall():
            return {
                "syscall": piece.name,
                "args": [clean(arg) for arg in piece.shown],
                "result": piece.result,
                "path": None if piece.path is None else clean(piece.path),
                **common,
                "filtered": True,
            }
        case LabelDenial():
            return {
                "syscall": None,
                "args": [],
                "result": None,
                "path": None if piece.path is None else clean(piece.path),
                **common,
                "label": {
                    "permissions": list(piece.permissions),
                    "class": piece.tclass,
                    "scontext": clean(piece.scontext),
                    "tcontext": clean(piece.tcontext),
                },
            }


def _answer(result: Any) -> str:
    """` = 0`, ` = -1 EPERM`, or nothing where the result is not known."""
    if not isinstance(result, int):
        return ""
    return f" = -1 {errno.errorcode[-result]}" if -result in errno.errorcode else f" = {result}"


def _what(document: Document) -> str:
    device = document.get("device")
    if isinstance(device, Mapping):
        verb = "made" if device.get("made") else "used"
        return f"{verb} {document.get('path')} ({device.get('access')})"
    label = document.get("label")
    if isinstance(label, Mapping):
        return _denied(label, document.get("path"))
    call = document.get("syscall")
    args = ", ".join(str(arg) for arg in document.get("args") or ())
    path = document.get("path")
    if document.get("filtered"):
        return f"{call}({args}): the engine's default filter denies it"
    if call is not None and args:
        about = f" on {path}" if path and str(path) not in args else ""
        return f"{call}({args}){_answer(document.get('result'))}{about}"
    if call is not None:
        return f"{call}{_answer(document.get('result'))}" + (f" on {path}" if path else "")
    return "outside any system call"


def _denied(label: Mapping[str, Any], path: str | None) -> str:
    """`SELinux denies container_t: write on file f (var_t)`, all by the policy's own names."""
    by, of = (str(label.get(side)).split(":") for side in ("scontext", "tcontext"))
    about = f" {path}" if path else ""
    types = [context[2] if len(context) > 2 else context[-1] for context in (by, of)]
    target = "" if by == of else f" ({types[1]})"  # itself: a capability, a socket of its own
    return (
        f"SELinux denies {types[0]}: {' '.join(label.get('permissions') or ())} on {label.get('class')}{about}{target}"
    )


def headline(document: Document) -> str:
    """One printable line: the call with arguments and result, or the device and how it was used, and how often.

    A call that was not stopped is followed by the place in the kernel that asked.
    """
    line = _what(document)
    checks = document.get("kernel_checks") or ()
    if checks and not document.get("args"):
        line += f" (asked by {checks[0].get('site')})"
    count = document.get("count", 1)
    return printable(line + (f" ×{count}" if count > 1 else ""))


def tellingness(document: Document) -> tuple[bool, bool, bool, bool, bool]:
    """A sort key, larger is better: what SELinux said, then what is known with its arguments, its path, or at least its
    call comes first.

    Of devices, those that were written to or made: programs read others of the pool while they look for one.
    """
    device = document.get("device")
    return (
        "label" in document,
        bool(document.get("args")) and not document.get("filtered"),
        bool(document.get("path")),
        document.get("syscall") is not None,
        isinstance(device, Mapping) and (bool(device.get("made")) or "w" in str(device.get("access"))),
    )
