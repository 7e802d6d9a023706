"""What is said when the real client cannot be executed."""

import errno
import subprocess

import pytest

from profiler.errors import HostError
from profiler.harness.docker.engine import Engine


@pytest.fixture
def engine():
    """An engine that was never asked anything."""
    bare = object.__new__(Engine)
    bare._prefix = ("docker",)
    return bare


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.EAGAIN, "too many processes"), (errno.ENOMEM, "memory"), (errno.ENOENT, "install")]
)
def test_the_hint_is_for_what_is_wrong(engine, monkeypatch, number, advice):
    def refuse(*_, **__):
        raise OSError(number, "no")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    for use in (
        lambda: engine.client("version"),
        lambda: engine.pull("x", None),
        lambda: engine.attach("x", interactive=False, stdin=0),
    ):
        with pytest.raises(HostError, match="cannot be run: no") as caught:
            use()
        assert advice in caught.value.hint
