"""An AppArmor profile for one workload: docker-default, but for the denials that the workload met. Loads nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from profiler.catalogue.apparmor import ALLOWED, DENIED_FILES, PROPAGATION
from profiler.catalogue.paths import OPENS_FOR_WRITING
from profiler.model import Doubt, Observation
from profiler.synthesizer.confinement import class_of, classes_of, struck
from profiler.synthesizer.globs import NAMEABLE, matches, without

_FSTYPE = re.compile(r'"([A-Za-z0-9_.-]+)"')
_ANY_MOUNT = "mount,"


@dataclass(frozen=True)
class Opening:
    """What docker-default denies and the profile allows: `rules` to add, `paths` that are left out of its denials,
    `globs` of denials that are left out as a whole, and all that in `words`, a few each. `kept` are rules for what
    docker-default allows by being compiled by a policy that does not know it."""

    rules: tuple[str, ...]
    paths: tuple[str, ...]
    globs: tuple[str, ...]
    words: tuple[str, ...]
    kept: tuple[str, ...] = ()


def openings(
    observations: Sequence[Observation], closed: Collection[str] = frozenset(), known: Collection[str] = frozenset()
) -> tuple[Opening, ...]:
    """What these calls need opened, the narrowest first; empty where docker-default denies none of them.

    First each mount by what it does and each path by its name, then any mount, and every path of a rule that struck.
    `closed` names the classes of actions that docker-default denies here, `known` those that the parser has a
    rule for: a profile of ours may be compiled by a policy that the engine's is not.
    """
    met = [observation for doubt, _, observation in struck(observations, closed) if doubt <= Doubt.LIKELY]
    calls = [observation for observation in met if observation.call not in OPENS_FOR_WRITING]
    paths = tuple(sorted({observation.path or "" for observation in met if observation.call in OPENS_FOR_WRITING}))
    kept = tuple(f"{name}," for name in sorted(classes_of(observations) & set(known) - set(closed)))
    if not met:
        return ()
    exact = dict(_rule(call) for call in calls)
    coarse = {_ANY_MOUNT: "any mount"} if any(rule.startswith(("mount", "remount")) for rule in exact) else {}
    coarse |= {rule: words for rule, words in exact.items() if not rule.startswith(("mount", "remount"))}
    if _ANY_MOUNT in exact:
        exact = coarse
    struck_globs = tuple(rule.glob for rule in DENIED_FILES if any(matches(rule.glob, path) for path in paths))
    whole = tuple(f"writing to all of {glob}" for glob in struck_globs)
    wide = _opening(coarse, (), struck_globs, whole, kept)
    if not all(NAMEABLE.fullmatch(path) for path in paths):
        return (wide,)
    narrow = _opening(exact, paths, (), tuple(f"writing to {path}" for path in paths), kept)
    return (narrow,) if narrow.rules == wide.rules and not paths else (narrow, wide)


def _opening(
    rules: Mapping[str, str],
    paths: tuple[str, ...],
    globs: tuple[str, ...],
    more: tuple[str, ...],
    kept: tuple[str, ...],
) -> Opening:
    """`rules` have their words beside them; `more` are those for files."""
    return Opening(tuple(sorted(rules)), paths, globs, tuple(dict.fromkeys((*rules.values(), *more))), kept)


def profile_text(name: str, opening: Opening, *, remarks: Iterable[str] = ()) -> str:
    """The profile `name` in the language of apparmor.d(5), with `remarks` as comments at its head."""
    lines = [*(f"# {remark}" for remark in remarks), "include if exists <tunables/global>", ""]
    lines += [f'profile "{name}" flags=(attach_disconnected,mediate_deleted) {{']
    lines += ["  include if exists <abstractions/base>"]
    lines += [f"  {rule.format(name=name)}" for rule in (*ALLOWED, *opening.kept)]
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
    one = class_of(call)
    if one is not None:
        return f"{one.name},", one.words
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
