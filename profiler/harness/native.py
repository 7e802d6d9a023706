"""The embedded sandbox: a command on this host's own files, in namespaces of its own, without any engine.

What a workload sees: the host's file systems below private layers (nothing that it writes stays), no service of the
host (a socket of the host that is seen through a layer has no listener), a loopback interface alone (unless the network
is the host's), and below /dev what the recipe names. Both runs start from the same state and the host does not change,
but for what no namespace holds: devices, modules, the clock. Kernel parameters of the host are read-only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from profiler import __version__
from profiler.errors import HostError, UsageError
from profiler.harness import native_cgroups, native_devices, native_mounts
from profiler.harness.docker_flags import flags_of
from profiler.harness.native_run import Helper, NativeRun, has_terminal
from profiler.harness.native_spec import Spec
from profiler.harness.stdin import Spool
from profiler.kernel.capabilities import last_cap, name_of, sets_of
from profiler.leftovers import PREFIX, STATE, is_leftover, owner_tag
from profiler.model import Capability, HostFacts, Outcome, Recipe, Syscalls

DISK = Path("/var/lib") / PREFIX  # what sandboxes write may be large, and /run is mostly in memory
# Who finds these takes the host's service for one that can be reached, and waits for its answer: libdevmapper for udev
# (a semaphore that only the host's udev could raise), packages' scripts for systemd.
_UNREACHABLE = ("/run/udev/control", "/run/systemd/system", "/run/systemd/private")
_RUNS = count()


class NativeSandbox:
    """Implements `Sandbox` for `argv`, run in the directory `cwd` with the environment `env`.

    `network` is `private` (a loopback interface and nothing else) or `host`. Raises HostError when not root.
    """

    name = "native"

    def __init__(self, argv: Sequence[str], *, cwd: str, env: Mapping[str, str], network: str = "private") -> None:
        if os.geteuid() != 0:
            raise HostError("the embedded sandbox needs root", "run capprofile with sudo, or profile a docker command")
        if network not in ("private", "host"):
            raise UsageError(f"unknown network: {network}", "use private or host")
        if not argv:
            raise UsageError("no command is given", "capprofile run -- COMMAND ARG…")
        self._argv = tuple(argv)
        self._cwd = cwd
        self._env = tuple(env.items())
        self._private_network = network == "private"
        self._nodes = native_devices.host_nodes()
        self._home = STATE / f"{owner_tag()}-native-{next(_RUNS)}"
        self._home.mkdir(mode=0o700, parents=True)
        self._spool = Spool(self._home)
        self._run: NativeRun | None = None
        self.notes: tuple[str, ...] = ()

    def facts(self) -> HostFacts:
        """What this host can do: everything that this process may do itself."""
        grantable = sets_of().bounding & sets_of().permitted
        known = (name_of(number) for number in range(last_cap() + 1))
        return HostFacts(
            kernel=os.uname().release,
            engine=self.name,
            engine_version=__version__,
            lsms=_lsms(),
            witnesses=(),
            grantable=grantable,
            not_granted=tuple(name for name in known if name not in grantable),
            cgroup_version=2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1,
        )

    def broad(self) -> Recipe:
        """Every capability that we have and every device node that the host has."""
        capabilities = frozenset(Capability(name) for name in self.facts().grantable)
        return capabilities | native_devices.broad_devices(self._nodes)

    def start(self, recipe: Recipe) -> NativeRun:
        """Start the workload with `recipe`, held at its gate, on our stdio. Raises HostError if that cannot be."""
        if self._run is not None:
            self._run.close()
        with self._spool.feed() as stdin:
            helper = self._spawn(recipe, at_gate=True, stdin=stdin)
        self._run = NativeRun(helper, self._argv, tuple(f"{name}={value}" for name, value in self._env))
        self.notes = helper.notes
        return self._run

    def rerun(self, recipe: Recipe, *, timeout: float | None, slot: int = 0) -> Outcome:
        """Run the command untraced with `recipe` and wait, at most `timeout` seconds, for its end.

        Output is captured, standard input replayed. It has a session of its own: there is no terminal to share.
        """
        with self._spool.replay() as stdin:
            helper = self._spawn(recipe, at_gate=False, stdin=stdin.fileno(), slot=slot)
        try:
            return helper.capture(timeout)
        finally:
            helper.close()

    def parallel(self) -> bool:
        """Reruns share nothing but the host's network, if that."""
        return self._private_network

    def image(self) -> tuple[str, str]:
        """There is none."""
        return "", ""

    def command(self) -> tuple[str, ...]:
        """The user's own command, as given."""
        return self._argv

    def docker_args(self, recipe: Recipe) -> tuple[str, ...]:
        """The flags with which a container would get `recipe`."""
        return flags_of(frozenset(privilege for privilege in recipe if not isinstance(privilege, Syscalls)))

    def docker_command(self, recipe: Recipe) -> tuple[str, ...]:
        """There is none: no image holds this host's files."""
        return ()

    def filter_of(self, capabilities: frozenset[str]) -> bytes | None:
        """The embedded sandbox installs no filter."""
        return None

    def close(self) -> None:
        """End the traced run, if it still goes on, and remove our files. Idempotent."""
        if self._run is not None:
            self._run.close()
        self._spool.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def _spawn(self, recipe: Recipe, *, at_gate: bool, stdin: int, slot: int = 0) -> Helper:
        """Start a helper for `recipe` and wait until it holds the workload. Privileges of engines mean nothing here."""
        provision = native_devices.provide(recipe, self._nodes)
        name = f"{owner_tag()}-{slot}-{next(_RUNS)}"
        spec = Spec(
            argv=self._argv,
            env=self._env,
            cwd=self._cwd,
            capabilities=tuple(sorted(p.name for p in recipe if isinstance(p, Capability))),
            nodes=provision.nodes,
            links=provision.links,
            device_rules=provision.rules,
            private_network=self._private_network,
            at_gate=at_gate,
            own_session=not at_gate,
            foreground=at_gate and has_terminal(),
            name=name,
            stores=tuple(str(base / name) for base in (DISK, STATE)),
            hidden=(str(STATE), str(DISK), *_UNREACHABLE),
        )
        return Helper(spec, stdin)


def clean_leftovers() -> tuple[str, ...]:
    """Remove the files and control groups of owners that are gone; returns their paths.

    Mounts and processes are never left: they end with the sandbox's init.
    """
    removed = []
    for base in (DISK, STATE):
        for directory in base.iterdir() if base.is_dir() else ():
            if is_leftover(directory.name):
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(str(directory))
    mounts = native_mounts.visible(native_mounts.parse(Path("/proc/self/mountinfo").read_text(encoding="utf-8")))
    groups = native_cgroups.leftovers(mounts, is_leftover)
    native_cgroups.remove(groups)
    return (*removed, *(str(group) for group in groups))


def _lsms() -> tuple[str, ...]:
    with suppress(OSError):
        return tuple(Path("/sys/kernel/security/lsm").read_text(encoding="ascii").strip().split(","))
    return ()
