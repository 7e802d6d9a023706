"""Standard input is given to the first run as it comes, and to the others again."""

import os
import pty
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import pytest

from profiler.errors import UsageError
from profiler.harness import stdin
from profiler.harness.stdin import Spool


def run(script, descriptor):
    return subprocess.run([sys.executable, "-c", script], stdin=descriptor, capture_output=True, check=True).stdout


ECHO = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
FIRST_BYTE = "import os; os.write(1, os.read(0, 1))"


@contextmanager
def spool_of(tmp_path, source):
    spool = Spool(tmp_path, source)
    try:
        yield spool
    finally:
        spool.close()
        assert list(tmp_path.glob("stdin-*")) == []


@contextmanager
def pipe(content, *, close=True):
    reader, writer = os.pipe()

    def write():
        with suppress(BrokenPipeError):
            os.write(writer, content)
        if close:
            os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield reader
    finally:
        os.close(reader)
        thread.join()
        if not close:
            os.close(writer)


def replayed(spool, script=ECHO):
    with spool.replay() as again:
        return run(script, again)


def test_pipe_reaches_every_run(tmp_path):
    content = os.urandom(300_000)
    with pipe(content) as reader, spool_of(tmp_path, reader) as spool:
        assert spool.kind == "pipe"
        with spool.feed() as fed:
            child = subprocess.Popen([sys.executable, "-c", ECHO], stdin=fed, stdout=subprocess.PIPE)
        assert child.communicate()[0] == content
        assert replayed(spool) == content
        assert replayed(spool) == content


def test_run_that_stops_reading_ends_the_copying_and_the_rest_may_still_come(tmp_path):
    with pipe(b"x" * 30_000, close=False) as reader, spool_of(tmp_path, reader) as spool:
        with spool.feed() as fed:
            child = subprocess.Popen([sys.executable, "-c", FIRST_BYTE], stdin=fed, stdout=subprocess.PIPE)
        assert child.communicate()[0] == b"x"
        assert replayed(spool, FIRST_BYTE) == b"x"


def test_closing_does_not_wait_for_an_input_that_never_ends(tmp_path):
    with pipe(b"", close=False) as reader, spool_of(tmp_path, reader) as spool, spool.feed():
        pass


def test_closing_does_not_wait_for_a_run_that_never_reads(tmp_path):
    with pipe(b"x" * 200_000) as reader, spool_of(tmp_path, reader) as spool, spool.feed():
        pass


def test_file_is_read_by_each_run_from_where_it_stood(tmp_path):
    path = tmp_path / "input"
    path.write_bytes(b"skipped,kept")
    with path.open("rb", buffering=0) as file:
        file.seek(len(b"skipped,"))
        with spool_of(tmp_path, file.fileno()) as spool:
            assert spool.kind == "file"
            path.unlink()
            with spool.feed() as fed:
                assert run(ECHO, fed) == b"kept"
            assert replayed(spool) == b"kept"
            assert replayed(spool) == b"kept"


def test_terminal_is_handed_on_and_replays_as_nothing(tmp_path):
    ours, theirs = pty.openpty()
    try:
        with spool_of(tmp_path, theirs) as spool:
            assert spool.kind == "terminal"
            with spool.feed() as fed:
                assert fed == theirs
            assert replayed(spool) == b""
    finally:
        os.close(ours)
        os.close(theirs)


def test_closed_and_null_inputs_are_nothing(tmp_path):
    descriptor = os.open(os.devnull, os.O_RDONLY)
    spool = Spool(tmp_path, descriptor)
    os.close(descriptor)
    closed = Spool(tmp_path, descriptor)
    for each in (spool, closed):
        assert each.kind == "none"
        with each.feed() as fed:
            assert run(ECHO, fed) == b""
        assert replayed(each) == b""
        each.close()
        each.close()


def test_too_long_an_input_still_reaches_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(stdin, "LIMIT", 1 << 16)
    content = b"y" * 200_000
    with pipe(content) as reader, spool_of(tmp_path, reader) as spool:
        with spool.feed() as fed:
            assert run(ECHO, fed) == content
        with pytest.raises(UsageError, match="longer") as caught:
            spool.replay()
        assert "< FILE" in caught.value.hint
