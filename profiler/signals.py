"""What SIGINT, SIGTERM and SIGHUP do to this program: they end it in order, but for the first SIGINT of a traced run.

Handlers belong to the main thread; elsewhere the context managers here do nothing.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

ENDING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# timeout(1) signals its child and then its whole group, so that one interruption arrives twice.
SAME_SECONDS: Final = 0.5


class Ended(BaseException):
    """A signal that ends this program arrived; not an Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def orderly_end() -> Iterator[None]:
    """Turn the first of the ending signals into `Ended`, so that every `finally` on the way cleans up; the following
    ones are ignored. What this program was started with as ignored (nohup, a shell's background job) stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for ending in ENDING:
            signal.signal(ending, signal.SIG_IGN)
        raise Ended(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def first_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Within the block the first SIGINT calls `action`, which must return at once, and does nothing else; a later one
    does what it would have done without the block."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return
    first = 0.0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not first:
            first = time.monotonic()
            action()
        elif time.monotonic() - first > SAME_SECONDS and callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        # An ending signal has set this to ignored, for the time of cleaning up: it must stay so.
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)
