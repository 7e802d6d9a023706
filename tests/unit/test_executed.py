"""What an executed file's own capabilities say, read from the attribute's bytes and joined by the ledger."""

from __future__ import annotations

import struct

import pytest

from profiler.kernel.filecaps import parse
from profiler.model import Capability, Doubt, KernelCheck, Trace
from profiler.synthesizer.pools import Pools
from profiler.synthesizer.requirements import requirements
from profiler.tracer.executed import SITE
from profiler.tracer.ledger import Ledger
from profiler.witness.events import CheckKind, Exec

NET_RAW_EP = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def test_revision_two() -> None:
    found = parse(NET_RAW_EP)
    assert found.permitted == {"NET_RAW"}
    assert found.effective


def test_high_word_and_no_effective_bit() -> None:
    found = parse(struct.pack("<IIIIII", 0x03000000, 1, 0, 1 << 7, 0, 1000))  # revision 3: a root id follows
    assert found.permitted == {"CHOWN", "BPF"}
    assert not found.effective


def test_first_revision_has_one_word() -> None:
    assert parse(struct.pack("<III", 0x01000001, 1 << 21, 0)).permitted == {"SYS_ADMIN"}


@pytest.mark.parametrize("value", [b"", b"\x01\x00\x00\x02", NET_RAW_EP[:12]])
def test_cut_off(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"security\.capability"):
        parse(value)


def test_an_executed_file_becomes_a_requirement() -> None:
    kind = CheckKind(KernelCheck("NET_RAW", True, SITE, (SITE,)), "execve")
    ledger = Ledger(carried=lambda event: (kind,) if event.filename == "/usr/bin/ping" else ())
    ledger.feed([Exec(1, 7, 7, "/bin/sh"), Exec(2, 7, 7, "/usr/bin/ping"), Exec(3, 8, 8, "/usr/bin/ping")])
    observations, _ = ledger.finish()
    assert [(o.call, o.args, o.path, o.result, o.count) for o in observations] == [
        ("execve", ('"/usr/bin/ping"',), "/usr/bin/ping", 0, 2)
    ]
    trace = Trace(observations, (), (), {}, 0, 0.0)
    rows = requirements(trace, frozenset({"NET_RAW"}), Pools({}), confined=True)
    assert [row.alternatives for row in rows] == [(frozenset({Capability("NET_RAW")}),)]
    assert rows[0].doubt is Doubt.CERTAIN
