"""Several traced runs of one workload as one trace: all that any of them showed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from profiler import denying, observing
from profiler.model import Trace


def merged(traces: Sequence[Trace], exit_code: int) -> Trace:
    """The traces as one. `exit_code` is that of a run that went well."""
    if len(traces) == 1:
        return traces[0]
    losses: dict[str, int] = {}
    for trace in traces:
        for name, count in trace.losses.items():
            losses[name] = losses.get(name, 0) + count
    return dataclasses.replace(
        traces[-1],
        observations=tuple(o for trace in traces for o in trace.observations),
        devices=tuple(d for trace in traces for d in trace.devices),
        raw_calls=tuple(c for trace in traces for c in trace.raw_calls),
        losses=losses,
        exit_code=next((t.exit_code for t in traces if t.exit_code != exit_code), exit_code),
        notes=tuple(dict.fromkeys(note for trace in traces for note in trace.notes)),
        stopped=next((t.stopped for t in traces if t.stopped is not None), None),
        denial=denying.merged([trace.denial for trace in traces]),
        called=observing.merged(trace.called for trace in traces),
        sysctls={key: value for trace in traces for key, value in trace.sysctls.items()},
        system={path: write for trace in traces for path, write in trace.system.items()},
        interrupted=max((t.interrupted for t in traces if t.interrupted is not None), default=None),
    )
