"""An AppArmor profile for one workload: docker-default, but for the denials that the workload met. Loads nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from profiler.catalogue.apparmor import ALLOWED, DENIED_CALLS, DENIED_FILES, PROPAGATION
from profiler.model import Doubt, Observation
from profiler.synthesizer.confinement import struck
from profiler.synthesizer.globs import NAMEABLE, matches, without

_FSTYPE = re.compile(r'"([A-Za-z0-9_.-]+)"')
_ANY_MOUNT = "mount,"


@dataclass(frozen=True)
class Opening:
    """What docker-default denies and the profile allows: `rules` to add, `paths` that are left out of its denials,
    `globs` of denials that are left out as a whole, and all that in `words`, a few each."""

    rules: tuple[str, ...]
    paths: tuple[str, ...]
    globs: tuple[str, ...]
    words: tuple[str, ...]


def openings(observations: Iterable[Observation]) -> tuple[Opening, ...]:
    """What these calls need opened, the narrowest first; empty where docker-default denies none of them.

    First each mount by what it does and each path by its name, then any mount, and every path of a rule that struck.
    """
    met = [observation for doubt, _, observation in struck(observations) if doubt <= Doubt.LIKELY]
    calls = [observation for observation in met if observation.call in DENIED_CALLS]
    paths = tuple(sorted({observation.path or "" for observation in met if observation.call not in DENIED_CALLS}))
    if not met:
        return ()
    exact = dict(_rule(call) for call in calls)
    coarse = {_ANY_MOUNT: "any mount"} if any(rule.startswith(("mount", "remount")) for rule in exact) else {}
    coarse |= {rule: words for rule, words in exact.items() if not rule.startswith(("mount", "remount"))}
    if _ANY_MOUNT in exact:
        exact = coarse
    struck_globs = tuple(rule.glob for rule in DENIED_FILES if any(matches(rule.glob, path) for path in paths))
    whole = tuple(f"writing to all of {glob}" for glob in struck_globs)
    wide = _opening(coarse, (), struck_globs, whole)
    if not all(NAMEABLE.fullmatch(path) for path in paths):
        return (wide,)
    narrow = _opening(exact, paths, (), tuple(f"writing to {path}" for path in paths))
    return (narrow,) if narrow.rules == wide.rules and not paths else (narrow, wide)


def _opening(
    rules: Mapping[str, str], paths: tuple[str, ...], globs: tuple[str, ...], more: tuple[str, ...]
) -> Opening:
    """`rules` have their words beside them; `more` are those for files."""
    return Opening(tuple(sorted(rules)), paths, globs, tuple(dict.fromkeys((*rules.values(), *more))))


def profile_text(name: str, opening: Opening, *, remarks: Iterable[str] = ()) -> str:
    """The profile `name` in the language of apparmor.d(5), with `remarks` as comments at its head."""
    lines = [*(f"# {remark}" for remark in remarks), "include if exists <tunables/global>", ""]
    lines += [f'profile "{name}" flags=(attach_disconnected,mediate_deleted) {{']
    lines += ["  include if exists <abstractions/base>"]
    lines += [f"  {rule.format(name=name)}" for rule in ALLOWED]
    lines += ["", "  # beyond docker-default", *(f"  {rule}" for rule in opening.rules)]
    if not any(rule.startswith(("mount", "remount")) for rule in opening.rules):
        lines.append("  deny mount,")
    for rule in DENIED_FILES:
        globs = [] if rule.glob in opening.globs else [rule.glob]
        for path in opening.paths:
            globs = [left for glob in globs for left in without(glob, path)]
        lines += [f'  deny "{glob}" {rule.access},' for glob in globs]
    return "\n".join([*lines, "}", ""])


def _rule(call: Observation) -> tuple[str, str]:
    """The rule that allows this call, and what it allows in a few words.

    As the kernel sorts them (security/apparmor/mount.c): a remount, a bind, a change of propagation, a move, and else a
    new mount, each looked at with its own options alone. A mount of the newer calls comes to it as a move.
    """
    if call.call == "pivot_root":
        return "pivot_root,", "pivot_root"
    if call.call == "move_mount":
        return "mount options=(move),", "attaching and moving mounts"
    if len(call.args) < 4:  # it was not stopped
        return _ANY_MOUNT, "any mount"
    flags = frozenset(call.args[3].split("|"))
    if "MS_REMOUNT" in flags:
        return "remount,", "remounts"
    if "MS_BIND" in flags:
        return f"mount options=({'rbind' if 'MS_REC' in flags else 'bind'}),", "bind mounts"
    changes = sorted(flags & PROPAGATION.keys())
    if changes:
        option = f"make-{'r' if 'MS_REC' in flags else ''}{PROPAGATION[changes[0]]}"
        silent = ",silent" if "MS_SILENT" in flags else ""
        return f"mount options=({option}{silent}),", "changes of propagation"
    if "MS_MOVE" in flags:
        return "mount options=(move),", "attaching and moving mounts"
    kind = _FSTYPE.fullmatch(call.args[2])
    return (f"mount fstype=({kind[1]}),", f"mounting {kind[1]}") if kind else (_ANY_MOUNT, "any mount")
