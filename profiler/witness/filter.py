"""What an engine's own seccomp filter answers, call by call, and a profile that is this filter plus some calls."""

from __future__ import annotations

import errno
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from system_calls import syscalls

from profiler.kernel import bpf
from profiler.kernel.paths import MASK32, Half, Path, TooManyPaths, equal, meet, paths_of
from profiler.model import AllowList, RawCall
from profiler.witness.comparisons import Conjunction, express, meets

_PASSING = frozenset({"ALLOW", "LOG"})

# Calls that every libc gives up silently on ENOSYS, for an older call that does as much. Engines answer ENOSYS to
# clone3 exactly for that: its flags are in memory, where no filter sees them (moby commit 9f6b562d).
_FALLS_BACK = frozenset({"clone3"})

# Numbers that the kernel reserves without implementing them; the table of `system-calls` leaves them out.
_RESERVED = {
    "x86_64": {
        "uselib": 134,
        "_sysctl": 156,
        "create_module": 174,
        "get_kernel_syms": 177,
        "query_module": 178,
        "nfsservctl": 180,
        "getpmsg": 181,
        "putpmsg": 182,
        "afs_syscall": 183,
        "tuxcall": 184,
        "security": 185,
        "vserver": 236,
    }
}


@functools.cache
def numbers(arch: str) -> Mapping[str, int]:
    """The call numbers by name of `x86_64`, `x32` or `i386`, as the package `system-calls` and the kernel list them."""
    return {**_RESERVED.get(arch, {}), **syscalls().load_arch_table(arch)}


@functools.cache
def names(arch: str) -> Mapping[int, str]:
    """The other way round: their names by number."""
    return {number: name for name, number in numbers(arch).items()}


@dataclass(frozen=True)
class Answer:
    """What a filter answers: an action as `ALLOW`, `ERRNO`, `KILL_PROCESS`, and the errno that goes with ERRNO."""

    action: str
    errno: int | None = None

    @property
    def allowed(self) -> bool:
        """Whether the call is made."""
        return self.action in _PASSING

    @property
    def probe_fallback(self) -> bool:
        """Whether the call looks as if the kernel did not know it, which programs answer with an older call."""
        return self.errno == errno.ENOSYS

    def __str__(self) -> str:
        return self.action if self.errno is None else errno.errorcode.get(self.errno, f"errno {self.errno}")

    @classmethod
    def of(cls, word: int) -> Answer:
        """The meaning of the word that a filter returns."""
        action = bpf.action_name(word)
        # The kernel knows no greater errno (MAX_ERRNO, kernel/seccomp.c, __seccomp_filter).
        return cls(action, min(word & bpf.RET_DATA, 4095) if action == "ERRNO" else None)


class EngineFilter:
    """One filter, as `kernel.filters.filters_of` reads it."""

    def __init__(self, program: bytes) -> None:
        """`program` is an array of `struct sock_filter`; raises ValueError when it is none."""
        self.program = program
        self._instructions = bpf.decode(program)
        self._paths: dict[tuple[int, int], tuple[Path, ...]] = {}

    def answer(self, number: int, args: Sequence[int] = (), arch: int = bpf.AUDIT_ARCH_X86_64) -> Answer:
        """The answer to a call by its number and its arguments (modulo 2**64, missing ones are 0)."""
        words = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*args, 0, 0, 0, 0, 0, 0)[:6]]
        return Answer.of(bpf.run(self._instructions, bpf.SECCOMP_DATA.pack(number & 0xFFFFFFFF, arch, 0, *words)))

    def allows(self, number: int, args: Sequence[int] = ()) -> bool:
        """Whether the call is made."""
        return self.answer(number, args).allowed

    def paths(self, number: int, arch: int = bpf.AUDIT_ARCH_X86_64) -> tuple[Path, ...]:
        """Every way through the filter for one number. Raises TooManyPaths for a filter that no library made."""
        key = (number, arch)
        if key not in self._paths:
            self._paths[key] = paths_of(self._instructions, number, arch)
        return self._paths[key]

    def examined_args(self, number: int, arch: int = bpf.AUDIT_ARCH_X86_64) -> frozenset[int]:
        """Which arguments (0 to 5) the answer to a call may depend on."""
        try:
            return frozenset().union(*(path.examined for path in self.paths(number, arch)))
        except TooManyPaths:
            return frozenset(range(6))

    def ever_denied(self) -> frozenset[str]:
        """The names of the x86_64 calls that are denied for some arguments at least."""
        return frozenset(name for name, number in numbers("x86_64").items() if self._may_deny(number))

    def ever_allowed(self, arch: int = bpf.AUDIT_ARCH_X86_64) -> frozenset[str]:
        """The names of the calls, x86_64's or i386's, that are allowed for some arguments at least."""
        table = "i386" if arch == bpf.AUDIT_ARCH_I386 else "x86_64"
        return frozenset(name for name, number in numbers(table).items() if self._may_allow(number, arch))

    def _may_allow(self, number: int, arch: int) -> bool:
        try:
            return any(Answer.of(path.answer).allowed for path in self.paths(number, arch))
        except TooManyPaths:
            return False  # nor does a profile rebuilt from this filter

    def _may_deny(self, number: int) -> bool:
        try:
            return not all(Answer.of(path.answer).allowed for path in self.paths(number))
        except TooManyPaths:
            return True


def missing_calls(engine_filter: EngineFilter, raw_calls: Iterable[RawCall]) -> tuple[RawCall, ...]:
    """Those of the observed calls that this filter denies with these arguments, where that makes a difference.

    It makes none when the kernel itself gave the same errno, or when the answer is the ENOSYS on which libc falls back
    to an older call (clone3 to clone); other calls that are answered with ENOSYS are among the result.
    """
    return tuple(call for call in raw_calls if _matters(engine_filter.answer(call.number, call.args), call))


def _matters(answer: Answer, call: RawCall) -> bool:
    if answer.allowed:
        return False
    if answer.errno is not None and call.result == -answer.errno:
        return False
    return not (answer.probe_fallback and call.name in _FALLS_BACK)


# --------------------------------------------------------------------------------------------------------------------
# A filter turned back into a profile


@dataclass(frozen=True)
class Rebuilt:
    """A seccomp profile as `docker run --security-opt seccomp=FILE` takes it, and where it is stricter than asked."""

    profile: dict[str, object]
    stricter: tuple[str, ...]


@dataclass(frozen=True)
class _Rule:
    answer: Answer
    condition: Conjunction = ()


_ACTIONS = {
    "ALLOW": "SCMP_ACT_ALLOW",
    "LOG": "SCMP_ACT_LOG",
    "ERRNO": "SCMP_ACT_ERRNO",
    "TRAP": "SCMP_ACT_TRAP",
    "KILL_THREAD": "SCMP_ACT_KILL_THREAD",
    "KILL_PROCESS": "SCMP_ACT_KILL_PROCESS",
}
_FOREIGN = {"i386": ("SCMP_ARCH_X86", bpf.AUDIT_ARCH_I386), "x32": ("SCMP_ARCH_X32", bpf.AUDIT_ARCH_X86_64)}


def profile_with(filter_program: bytes, calls: frozenset[str], only: AllowList | None = None) -> dict[str, object]:
    """The profile of `rebuild`, where nobody asks in what it is stricter."""
    return rebuild(filter_program, calls, only).profile


def rebuild(filter_program: bytes, calls: frozenset[str], only: AllowList | None = None) -> Rebuilt:
    """A profile that answers as the filter does and allows `calls` whatever their arguments.

    The filter is followed on every path for every call that has a name. What cannot be said in a profile's terms is
    denied and named in `stricter`; nothing but `calls` is ever allowed that the filter denies. (On i386 and x32, which
    share x86_64's rules by name, a denied call may be denied with another errno.) An architecture for
    which one rule by name would allow too much is left out. Raises ValueError when the bytes are no filter.

    With `only` these calls alone are left of what that profile allows, each under the filter's own conditions, and no
    other architecture than x86-64 and, where it says so, i386. `calls` count among them.
    """
    rebuilt = _Rebuilding(EngineFilter(filter_program), calls)
    return rebuilt.result(only)


def _default_answer(engine_filter: EngineFilter) -> Answer:
    """The errno that most calls are denied with. Never an allowing answer, which would be looser for new calls."""
    answers = Counter(
        answer for number in numbers("x86_64").values() if (answer := engine_filter.answer(number)).action == "ERRNO"
    )
    return answers.most_common(1)[0][0] if answers else Answer("ERRNO", errno.EPERM)


def _paths_or_none(
    engine_filter: EngineFilter, number: int, arch: int = bpf.AUDIT_ARCH_X86_64, *, bits: int = 64
) -> tuple[Path, ...] | None:
    """The paths for one number, with empty high halves where arguments have 32 bits; None when there are too many."""
    try:
        paths = engine_filter.paths(number, arch)
    except TooManyPaths:
        return None
    if bits == 64:
        return paths
    zero = equal(MASK32, 0)
    assert zero is not None
    narrowed = []
    for path in paths:
        box = meet(path.box, {Half(arg, True): zero for arg in path.examined})
        if box is not None:
            narrowed.append(Path(box, path.answer, path.examined, path.exact))
    return tuple(narrowed)


class _Rebuilding:
    """The rules by name as they are found, and what could not be said."""

    def __init__(self, engine_filter: EngineFilter, calls: frozenset[str]) -> None:
        self.filter = engine_filter
        self.calls = calls
        self.default = _default_answer(engine_filter)
        self.rules: dict[str, tuple[_Rule, ...]] = {}
        self.stricter: list[str] = []

    def result(self, only: AllowList | None = None) -> Rebuilt:
        for name, number in numbers("x86_64").items():
            self.rules[name] = self.rules_for(name, _paths_or_none(self.filter, number))
        architectures = ["SCMP_ARCH_X86_64"]
        others = dict(_FOREIGN) if only is None else {"i386": _FOREIGN["i386"]} if only.i386 else {}
        for arch, (token, audit_arch) in others.items():
            # A filter kills the programs of an architecture that it does not serve.
            if self.filter.answer(numbers(arch)["exit_group"], (), audit_arch).allowed:
                own = self.foreign_rules(arch, audit_arch)
                if own is None:
                    self.stricter.append(f"{token} is left out: a rule by name would allow more there")
                else:
                    architectures.append(token)
                    self.rules |= own
        self.rules |= {name: (_Rule(Answer("ALLOW")),) for name in self.calls}
        if only is not None:
            kept = self.calls.union(only.names)
            self.rules = {
                name: tuple(rule for rule in rules if name in kept or not rule.answer.allowed)
                for name, rules in self.rules.items()
            }
        profile: dict[str, object] = {
            "defaultAction": _ACTIONS[self.default.action],
            "defaultErrnoRet": self.default.errno,
            "architectures": architectures,
            "syscalls": _entries(self.rules),
        }
        return Rebuilt(profile, tuple(self.stricter))

    def rules_for(self, name: str, paths: tuple[Path, ...] | None) -> tuple[_Rule, ...]:
        """The rules of one call, without those that say what the default says."""
        if name in self.calls:
            return ()
        if paths is None:
            self.stricter.append(f"{name} is denied: the filter has too many paths for it")
            return ()
        found: dict[_Rule, None] = {}
        for path in paths:
            answer = Answer.of(path.answer)
            if answer == self.default:
                continue
            others = [other for other in paths if Answer.of(other.answer) != answer]
            condition = express(path, others) if answer.action in _ACTIONS else None
            if condition is not None:
                found[_Rule(answer, condition)] = None
            else:
                self.stricter.append(
                    f"{name} is answered {self.default} where the filter answers {answer} for some arguments"
                )
        return tuple(found)

    def foreign_rules(self, arch: str, audit_arch: int) -> dict[str, tuple[_Rule, ...]] | None:
        """The rules of calls that only this architecture has; None when the rules for all would allow too much here."""
        own: dict[str, tuple[_Rule, ...]] = {}
        for name, number in numbers(arch).items():
            if name in self.calls:
                continue
            paths = _paths_or_none(self.filter, number, audit_arch, bits=32)
            if name not in self.rules:
                own[name] = self.rules_for(name, paths)
                continue
            allowing = [rule.condition for rule in self.rules[name] if rule.answer.allowed]
            if allowing and paths is None:
                return None
            denied = [path.box for path in paths or () if not Answer.of(path.answer).allowed]
            if any(meets(condition, box, bits=32) for condition in allowing for box in denied):
                return None
        return own


def _entries(rules: Mapping[str, tuple[_Rule, ...]]) -> list[dict[str, object]]:
    """A profile's `syscalls`: names with the same rule are one entry."""
    names: dict[_Rule, list[str]] = {}
    for name in sorted(rules):
        for rule in rules[name]:
            names.setdefault(rule, []).append(name)
    entries: list[dict[str, object]] = []
    for rule, called in names.items():
        entry: dict[str, object] = {"names": called, "action": _ACTIONS[rule.answer.action]}
        if rule.condition:
            entry["args"] = [comparison.json() for comparison in rule.condition]
        if rule.answer.errno is not None:
            entry["errnoRet"] = rule.answer.errno
        entries.append(entry)
    return entries
