"""Capabilities that the workload's own words name. A program that reads its own sets (capsh) checks none."""

from __future__ import annotations

import re
from collections.abc import Sequence

from profiler.model import Capability, Recipe, Trace

_NAME = re.compile(r"(?<![A-Za-z0-9_])CAP_([A-Z_]+)(?![A-Z0-9_])", re.IGNORECASE)


def named(command: Sequence[str], trace: Trace, grantable: frozenset[str]) -> Recipe:
    """The grantable capabilities that stand by their kernel names (`cap_net_raw`, `CAP_NET_RAW`) in the user's command
    or in that of any program that was seen."""
    words = [*command, *(word for observation in trace.observations for word in observation.process.argv)]
    found = {match[1].upper() for word in words for match in _NAME.finditer(word)}
    return frozenset(Capability(name) for name in found & grantable)
