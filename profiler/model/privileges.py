"""What `--privileged` hands out, a type each; a recipe is a set of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Capability:
    """A capability by its name without `CAP_`, as Docker spells it: `SYS_ADMIN`."""

    name: str

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return self.name


@dataclass(frozen=True, order=True)
class Device:
    """A device node that must exist below /dev, with the access used: a subset of `rwm`, in this order."""

    path: str
    access: str = "rwm"

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return f"{self.path}:{self.access}"


@dataclass(frozen=True, order=True)
class DeviceClass:
    """A pool of nodes of which any may be used in the next run (loop, tty, nbd): `kind` is `b` or `c`.

    `minor` None means every minor, a negative `major` every major. `paths` are the nodes present on this host, which
    the recipe lists one by one, since the engine creates none from a rule.
    """

    kind: str
    major: int
    minor: int | None = None
    access: str = "rwm"
    paths: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        major = "*" if self.major < 0 else self.major
        minor = "*" if self.minor is None else self.minor
        return f"{self.kind} {major}:{minor} {self.access}"


@dataclass(frozen=True, order=True)
class Syscalls:
    """Calls that the engine's default filter denies and that a profile of our own opens again."""

    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return "seccomp:" + ",".join(self.names)


@dataclass(frozen=True, order=True)
class AllowList:
    """No privilege but a bound: only these system calls may be made, as far as the recipe's filter allows them.

    `i386` tells that some were made by the table of 32-bit programs. A profile has one rule for a name in every table.
    """

    names: tuple[str, ...]
    i386: bool = False

    @property
    def label(self) -> str:
        """How the manifest names it."""
        return "seccomp:observed"


@dataclass(frozen=True, order=True)
class SecurityOption:
    """A `--security-opt` that switches a protection off: `apparmor=unconfined`, `label=disable`,
    `systempaths=unconfined`, `seccomp=unconfined`, `writable-cgroups=true`."""

    option: str

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return self.option


@dataclass(frozen=True, order=True)
class Sysctl:
    """A namespaced kernel parameter that the engine can set before the container starts (`--sysctl`)."""

    key: str
    value: str

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return f"sysctl:{self.key}={self.value}"


@dataclass(frozen=True, order=True)
class BindMount:
    """A file or tree of the host's /sys, writable in the container at the same path (`--volume PATH:PATH`), where no
    flag but `--privileged` would make the container's own writable.

    `host_groups`: together with the host's cgroup namespace, as the tree is one of control groups and the container
    would have a namespace of its own (`--cgroupns host`).
    """

    path: str
    host_groups: bool = False

    @property
    def label(self) -> str:
        """How the manifest and the table name it."""
        return f"volume:{self.path}"


Privilege = Capability | Device | DeviceClass | Syscalls | AllowList | SecurityOption | Sysctl | BindMount
Recipe = frozenset[Privilege]


def capability_names(recipe: Recipe) -> frozenset[str]:
    """A recipe's capabilities, without `CAP_`."""
    return frozenset(privilege.name for privilege in recipe if isinstance(privilege, Capability))


def opened_calls(recipe: Recipe) -> frozenset[str]:
    """The system calls that a recipe opens beyond the engine's own filter."""
    return frozenset(name for privilege in recipe if isinstance(privilege, Syscalls) for name in privilege.names)


def only_calls(recipe: Recipe) -> AllowList | None:
    """The system calls that a recipe allows at most; None where it sets no bound. It has one bound at most."""
    return next((privilege for privilege in recipe if isinstance(privilege, AllowList)), None)


def needs_profile(recipe: Recipe) -> bool:
    """Whether a recipe says anything of single system calls, which takes a seccomp profile."""
    return any(isinstance(privilege, Syscalls | AllowList) for privilege in recipe)
