"""What the profile docker-default denies to every container that is not `--privileged`, capabilities or not. Data.

Read in moby's profiles/apparmor/template.go (Docker 26), seen on Debian 13. Its denials are explicit `deny` rules, so
the kernel logs nothing when they strike; `umount` is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

# `deny mount` covers every mount(2), also a remount and a change of propagation (security/apparmor/lsm.c,
# apparmor_sb_mount, apparmor_move_mount); no rule allows pivot_root(2) (apparmor_sb_pivotroot).
DENIED_CALLS: frozenset[str] = frozenset({"mount", "move_mount", "pivot_root"})


@dataclass(frozen=True)
class ActionClass:
    """Actions that a profile without a rule for them denies altogether, if the policy it was compiled by knows them.

    `name` is apparmor.d(5)'s, and a whole rule; the actions are the `calls` in whose arguments, as people read them,
    `flag` stands; `words` name them for people.
    """

    name: str
    calls: frozenset[str]
    flag: str
    words: str


# Classes that docker-default names in no rule. Whether it denies one depends on the kernel, on the parser and on the
# `abi` that the engine's version has in the profile: witness/confined.py tries it.
ACTION_CLASSES: tuple[ActionClass, ...] = (
    # security/apparmor/lsm.c, apparmor_userns_create, apparmor_uring_sqpoll
    ActionClass("userns", frozenset({"unshare", "clone", "clone3"}), "CLONE_NEWUSER", "user namespaces"),
    ActionClass("io_uring", frozenset({"io_uring_setup"}), "IORING_SETUP_SQPOLL", "an io_uring with a polling thread"),
)


@dataclass(frozen=True)
class DeniedFiles:
    """A `deny` rule for files: a glob as apparmor.d(5) has it, and the access that is denied (of `rwklx`)."""

    glob: str
    access: str


# A process's own directory is known to the kernel by its number, which no rule names.
DENIED_FILES: tuple[DeniedFiles, ...] = (
    DeniedFiles("/proc/*", "w"),
    DeniedFiles("/proc/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/**", "w"),
    DeniedFiles("/proc/sys/[^k]**", "w"),
    DeniedFiles("/proc/sys/kernel/{?,??,[^s][^h][^m]**}", "w"),
    DeniedFiles("/proc/sysrq-trigger", "rwklx"),
    DeniedFiles("/proc/kcore", "rwklx"),
    DeniedFiles("/sys/[^f]*/**", "wklx"),
    DeniedFiles("/sys/f[^s]*/**", "wklx"),
    DeniedFiles("/sys/fs/[^c]*/**", "wklx"),
    DeniedFiles("/sys/fs/c[^g]*/**", "wklx"),
    DeniedFiles("/sys/fs/cg[^r]*/**", "wklx"),
    DeniedFiles("/sys/firmware/**", "rwklx"),
    DeniedFiles("/sys/kernel/security/**", "rwklx"),
    DeniedFiles("/sys/devices/virtual/powercap/**", "rwklx"),
)

# What the profile allows. Whoever may signal a container's processes: the host's own programs, among them the daemon,
# and its runtimes (for `docker stop` and `docker kill`). {name} is the profile's own.
ALLOWED: tuple[str, ...] = (
    "network,",
    "capability,",
    "file,",
    "umount,",
    "signal (receive) peer=unconfined,",
    "signal (receive) peer=runc,",
    "signal (receive) peer=crun,",
    'signal (send,receive) peer="{name}",',
    'ptrace (trace,read,tracedby,readby) peer="{name}",',
)

# Changes of a mount's propagation, by apparmor.d(5)'s names for them (after `make-`, or `make-r` with MS_REC).
PROPAGATION: dict[str, str] = {
    "MS_SHARED": "shared",
    "MS_PRIVATE": "private",
    "MS_SLAVE": "slave",
    "MS_UNBINDABLE": "unbindable",
}
