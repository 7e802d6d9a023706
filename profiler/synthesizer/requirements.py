"""From a trace to requirements: what each observed action needs, and how sure the trace alone can be."""

from __future__ import annotations

import dataclasses
import re
import stat
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from profiler.catalogue.apparmor import PROPAGATION
from profiler.catalogue.devices import DISPENSERS
from profiler.catalogue.paths import MASKED, OPENS_FOR_WRITING, READ_ONLY, REVEALING_TYPES, ROOT_MAPS
from profiler.catalogue.sites import ON_THE_CHANCE, Site, site_of
from profiler.catalogue.substitutes import SUBSTITUTES
from profiler.model import (
    Capability,
    Device,
    DeviceClass,
    DeviceUse,
    Doubt,
    Evidence,
    KernelCheck,
    Observation,
    Privilege,
    RawCall,
    Requirement,
    SecurityOption,
    Syscalls,
    Trace,
)
from profiler.synthesizer.pools import Pools

EXAMPLES = 8
MODE_OF = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}  # which argument is the mode
SIGNALS = frozenset({"kill", "pidfd_send_signal", "rt_sigqueueinfo"})
OWN_CHILD = "<child"  # how a signal's addressee is shown that the sender has started
UNMASKED = SecurityOption("systempaths=unconfined")
_TAKES_NO_TYPE = frozenset({"MS_REMOUNT", "MS_BIND", "MS_MOVE", *PROPAGATION})  # mount(2)
_LISTED = re.compile(r"(?:permitted|inheritable)=([A-Z][A-Z0-9_,]+)")  # a set of most is rendered as all-…


@dataclass(frozen=True)
class Need:
    """One action's need, before equal ones are put together."""

    alternatives: tuple[frozenset[Privilege], ...]
    reason: str
    doubt: Doubt
    evidence: Evidence


def requirements(trace: Trace, grantable: frozenset[str], pools: Pools, *, confined: bool) -> tuple[Requirement, ...]:
    """What `trace` shows to be needed, the surest first.

    `grantable` are the capabilities that can be granted here: others are no alternative. `confined` tells that the
    engine masks paths below /proc (Docker does, the embedded sandbox does not).
    """
    owners = frozenset(o.process.uid for o in trace.observations if "CLONE_NEWUSER" in " ".join(o.args[:1]))
    needs: list[Need] = []
    for observation in trace.observations:
        needs += _of_checks(observation, grantable, owners)
        needs += _of_paths(observation, grantable, owners, confined=confined)
        needs += _of_sets(observation, grantable)
    # runc lets every container make any node (`b *:* m`, `c *:* m`): only opening one asks the device cgroup.
    used = {(use.kind, use.major) for use in trace.devices}
    needs += [_of_device(use, pools, used) for use in trace.devices if not (use.made and use.access == "m")]
    return _merged(needs)


def seccomp_requirements(missing: Iterable[RawCall]) -> tuple[Requirement, ...]:
    """One requirement a call that the engine's own filter would refuse, where the workload got an answer from it.

    A call that fails even when it is let through is doubtful: the workload already lives with its failure. So is one
    that programs make on the chance.
    """
    needs = [
        Need(
            (frozenset({Syscalls((call.name,))}),),
            "the engine's default seccomp filter refuses this call",
            Doubt.DOUBTFUL if _fails_anyway(call) or call.name in ON_THE_CHANCE else Doubt.LIKELY,
            call,
        )
        for call in missing
    ]
    return _merged(needs)


def _alternatives(check: KernelCheck, grantable: frozenset[str]) -> tuple[frozenset[Privilege], ...]:
    names = [check.capability]
    for row in SUBSTITUTES:
        if row.asked == check.capability and (not row.functions or check.site in row.functions):
            names += row.instead
    return tuple(frozenset({Capability(name)}) for name in names if name in grantable)


def _of_checks(observation: Observation, grantable: frozenset[str], owners: Container[int]) -> Iterator[Need]:
    """What the calls' checks need. `owners` are the users who made user namespaces."""
    seen: set[tuple[str, str, Site | None]] = set()
    for check in observation.checks:
        if not check.granted or check.borrowed or _of_other_namespace(check, observation, owners):
            continue
        site = site_of(check, observation.call, observation.args)
        alternatives = _alternatives(check, grantable)
        if not alternatives or (check.capability, check.site, site) in seen:
            continue
        seen.add((check.capability, check.site, site))
        doubt = _doubt(check, site.doubt if site else Doubt.LIKELY, observation)
        yield Need(alternatives, site.why if site else "", doubt, observation)


def _doubt(check: KernelCheck, doubt: Doubt, observation: Observation) -> Doubt:
    """How sure the check is to matter: `doubt` is its site's, and the call's own arguments and caller tell more."""
    if doubt is Doubt.NEGLIGIBLE:
        return doubt
    sets_mode = check.capability == "FSETID" and observation.call in MODE_OF
    if sets_mode and not _sets_group_bit(observation):
        return Doubt.NEGLIGIBLE
    if _fails_anyway(observation) or _changes_nothing(observation):
        return max(doubt, Doubt.DOUBTFUL)
    ends = check.capability == "KILL" and _ends_anothers(observation)
    if sets_mode or ends or (doubt is Doubt.EVEN and _is_first(observation)):
        return Doubt.LIKELY
    return doubt


def _of_other_namespace(check: KernelCheck, observation: Observation, owners: Container[int]) -> bool:
    """Whether a user namespace of the workload's own grants it. Its owner needs nothing; another user (newuidmap is
    root, the namespace its caller's) needs the capability itself."""
    return check.foreign_namespace and not (check.from_above and observation.process.uid not in owners)


def _fails_anyway(observation: Observation | RawCall) -> bool:
    return observation.result is not None and observation.result < 0


def _changes_nothing(observation: Observation) -> bool:
    """setuid(2) to the real id succeeds without the capability: only the saved one stays (kernel/sys.c, __sys_setuid).
    So does setgid(2) of root to group 0. A set-user-ID program that takes its effective id keeps the real one."""
    process = observation.process
    if observation.call not in ("setuid", "setgid") or len(observation.args) != 1:
        return False
    real = process.real_uid if observation.call == "setuid" and process.real_uid >= 0 else process.uid
    return observation.args[0] == str(real)


def _sets_group_bit(observation: Observation) -> bool:
    """chmod(2) asks for FSETID at every file of a foreign group, and takes a set-group-ID bit out of the new mode
    without it (fs/attr.c, setattr_prepare): a mode that has none, which is not worth a stop, stays as it is."""
    place = MODE_OF[observation.call or ""]
    mode = observation.args[place] if len(observation.args) > place else "0"
    return not mode.isdecimal() or bool(int(mode, 8) & stat.S_ISGID)


def _is_first(observation: Observation) -> bool:
    """Whether the workload's first process made the call: its exit code is the workload's."""
    return bool(observation.process.exe) and not observation.process.chain


def _ends_anothers(observation: Observation) -> bool:
    """Whether a signal is for something that its sender has not started, as kill(1) and a shell's user send them.

    A service ends what it has started, and what is left ends with it; of a group some get the signal all the same.
    """
    if observation.call not in SIGNALS or not observation.args:
        return False
    whom = observation.args[0]
    return _is_first(observation) or not (OWN_CHILD in whom or whom.startswith(("-", "0")))


def _below(path: str, trees: Iterable[str]) -> bool:
    return any(path == tree or path.startswith(tree + "/") for tree in trees)


def _of_paths(
    observation: Observation, grantable: frozenset[str], owners: frozenset[int], *, confined: bool
) -> Iterator[Need]:
    path = observation.path
    if observation.call in OPENS_FOR_WRITING and path:
        if confined and _below(path, READ_ONLY + MASKED):
            doubt = Doubt.DOUBTFUL if _fails_anyway(observation) else Doubt.LIKELY
            yield Need((frozenset({UNMASKED}),), "the engine makes this path read-only", doubt, observation)
        if (
            path.startswith("/proc/")
            and path.rpartition("/")[2] in ROOT_MAPS
            and observation.process.uid == 0
            and "SETFCAP" in grantable
        ):
            yield Need(
                (frozenset({Capability("SETFCAP")}),),
                "uid 0 maps itself into a child user namespace (verify_root_map)",
                # who maps for another user (newuidmap) maps that user's ids
                Doubt.LIKELY if observation.process.uid in owners or not owners else Doubt.DOUBTFUL,
                observation,
            )
    if confined and _makes(observation) in REVEALING_TYPES:
        yield from _of_fresh(observation)


def _of_fresh(observation: Observation) -> Iterator[Need]:
    """What a fresh /proc or /sys needs. Who mounts is asked for SYS_ADMIN in the user namespace of its own mounts
    (fs/namespace.c, may_mount): where that is the container's own, nothing is compared with what is masked."""
    asked = [check for check in observation.checks if check.capability == "SYS_ADMIN" and not check.borrowed]
    if asked and not any(check.foreign_namespace for check in asked):
        return
    yield Need(
        (frozenset({UNMASKED}),),
        "a fresh /proc or /sys in a child user namespace is refused while the container's own is masked",
        Doubt.LIKELY if asked and not _fails_anyway(observation) else Doubt.DOUBTFUL,
        observation,
    )


def _makes(observation: Observation) -> str:
    """The type of the file system that this call makes; empty for one that shows, moves or changes what is there."""
    args = observation.args
    if observation.call == "fsopen" and args:
        return args[0].strip('"')
    if observation.call != "mount" or len(args) < 4 or not _TAKES_NO_TYPE.isdisjoint(args[3].split("|")):
        return ""
    return args[2].strip('"')


def _of_sets(observation: Observation, grantable: frozenset[str]) -> Iterator[Need]:
    """capset(2) refuses a permitted or inheritable set beyond the one held, and prctl(2) an ambient capability that is
    not held, both without a check (security/commoncap.c, cap_capset, cap_task_prctl): a container engine sets a list of
    its own, and fails without any of it.

    A program that only gives up what it has computes the set from its own, and sets less where it holds less; it raises
    an ambient capability by its name.
    """
    if _fails_anyway(observation):
        return
    names: set[str] = set()
    doubt = Doubt.DOUBTFUL
    if observation.call == "capset":
        for found in _LISTED.finditer(" ".join(observation.args)):
            names.update(found[1].split(","))
    elif observation.call == "prctl" and observation.args[1:2] == ("PR_CAP_AMBIENT_RAISE",):
        names.update(arg.removeprefix("CAP_") for arg in observation.args[2:3])
        doubt = Doubt.LIKELY
    for name in sorted(names & grantable):
        yield Need(
            (frozenset({Capability(name)}),),
            "a process can only set what it holds: without it the call is refused",
            doubt,
            observation,
        )


def _of_device(use: DeviceUse, pools: Pools, used: Container[tuple[str, int]]) -> Need:
    """The need of one device; `used` are the kinds and majors of all that the workload used."""
    access = _letters(use.access) or "rw"
    pool = pools.of(use.kind, use.major)
    privilege: Privilege
    if use.made:
        privilege = DeviceClass(use.kind, use.major, use.minor, "rwm")
        reason = "the workload makes this node itself"
    elif use.bound:
        # Its node is there whatever the recipe; of a pool's, another one may be taken from the same tree next time.
        which = (use.minor, access) if pool is None else (None, "rw")
        privilege = DeviceClass(use.kind, use.major, *which)
        reason = "the workload opens this device, which a mount brings"
    elif pool is not None:
        privilege = DeviceClass(use.kind, use.major, None, "rw", pool)
        reason = "any free node of this kind may be taken"
    else:
        privilege = Device(use.path, access)
        reason = "the workload opens this device"
    doubt = Doubt.DOUBTFUL if DISPENSERS.get(use.path) in used else Doubt.LIKELY
    return Need((frozenset({privilege}),), reason, doubt, use)


def _merged(needs: Iterable[Need]) -> tuple[Requirement, ...]:
    """Needs with the same alternatives become one requirement with the surest one's reason and a few examples."""
    groups: dict[tuple[frozenset[Privilege], ...], list[Need]] = {}
    for need in needs:
        groups.setdefault(need.alternatives, []).append(need)
    merged = []
    for alternatives, group in _joined_devices(groups).items():
        group.sort(key=lambda need: (need.doubt, not _is_told(need.evidence), _only_looked_at(need.evidence)))
        # What decides nothing is no evidence beside what may, nor what may beside what does: nft asks for a larger
        # buffer with its arguments known, but its rules, sent by a call that is not stopped, are what fails.
        surest = max(group[0].doubt, Doubt.EVEN)
        telling = [need for need in group if need.doubt <= surest]
        evidence = tuple(need.evidence for need in telling[:EXAMPLES])
        merged.append(Requirement(alternatives, group[0].reason, group[0].doubt, evidence))
    return tuple(sorted(merged, key=lambda requirement: requirement.doubt))


def _is_told(evidence: Evidence) -> bool:
    """Whether the evidence names more than the call: then it is shown first."""
    return not isinstance(evidence, Observation) or bool(evidence.args)


def _only_looked_at(evidence: Evidence) -> bool:
    """Whether it is a device that was not written to: mount and losetup read every node of a pool on their way to the
    one that they take."""
    return isinstance(evidence, DeviceUse) and not evidence.made and "w" not in evidence.access


def _joined_devices(
    groups: dict[tuple[frozenset[Privilege], ...], list[Need]],
) -> dict[tuple[frozenset[Privilege], ...], list[Need]]:
    """One device opened for reading by one process and for writing by another is one privilege with both letters."""
    joined: dict[tuple[frozenset[Privilege], ...], list[Need]] = {}
    access: dict[Privilege, str] = {}
    for alternatives in groups:
        for privilege in alternatives[0]:
            if isinstance(privilege, Device | DeviceClass):
                which = dataclasses.replace(privilege, access="")
                access[which] = access.get(which, "") + privilege.access
    for alternatives, group in groups.items():
        key = tuple(frozenset(_widened(p, access) for p in alternative) for alternative in alternatives)
        joined.setdefault(key, []).extend(group)
    return joined


def _widened(privilege: Privilege, access: Mapping[Privilege, str]) -> Privilege:
    """A device with all the letters that `access` knows for it."""
    if not isinstance(privilege, Device | DeviceClass):
        return privilege
    known = access.get(dataclasses.replace(privilege, access=""), privilege.access)
    return dataclasses.replace(privilege, access=_letters(known))


def _letters(access: str) -> str:
    """Each letter once, in the order in which the kernel's device cgroup and the engines write them."""
    return "".join(letter for letter in "rwm" if letter in access)
