"""What the engine says of itself, without any container or image: for `doctor`."""

from __future__ import annotations

import os
import platform
from contextlib import closing

from profiler.harness.docker.arguments import parse
from profiler.harness.docker.engine import Engine
from profiler.harness.docker.grants import check_engine, check_user, engine_bounding, known_capabilities, lsms_of
from profiler.kernel.capabilities import CAPABILITIES, last_cap
from profiler.model import HostFacts

NO_IMAGE = "capprofile/no-such-image:none"


def engine_facts() -> HostFacts:
    """The facts of the engine that a plain `docker` command reaches.

    `grantable` is what the engine's own processes may hand on, or all where they are not seen, of the capabilities
    whose names it knows: a run tries it with the workload's image. Raises HostError when there is no engine, or none
    whose containers can be watched from here.
    """
    check_user(os.geteuid())
    with closing(Engine(parse(("docker", "run", "none")))) as engine:
        check_engine(engine, userns=None)
        every = CAPABILITIES[: last_cap() + 1]
        known = known_capabilities(engine, ("--pull", "never", NO_IMAGE))
        grantable = engine_bounding() & known or known
        return HostFacts(
            kernel=platform.release(),
            engine="docker",
            engine_version=engine.server_version,
            lsms=lsms_of(engine),
            witnesses=(),
            grantable=grantable,
            not_granted=tuple(name for name in every if name not in grantable),
            cgroup_version=int(engine.info.get("CgroupVersion") or 1),
        )
