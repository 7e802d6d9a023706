"""What the ending signals do, in processes of their own: a handler belongs to a whole process."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest


def child(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    prelude = (
        "import os, signal, time\nfrom profiler.signals import Ended, first_interrupt, orderly_end, SAME_SECONDS\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_ends_in_order_and_later_ones_do_not_disturb(number):
    done = child(f"""
        try:
            with orderly_end():
                try:
                    os.kill(os.getpid(), {int(number)})
                    print("not reached")
                finally:
                    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                        os.kill(os.getpid(), again)
                    print("cleaned")
        except Ended as ended:
            print(ended.number)
    """)
    assert (done.stdout, done.stderr) == (f"cleaned\n{int(number)}\n", "")


def test_the_first_interrupt_of_a_block_only_acts_and_the_next_ends():
    done = child("""
        try:
            with orderly_end():
                with first_interrupt(lambda: print("asked")):
                    os.kill(os.getpid(), signal.SIGINT)
                    os.kill(os.getpid(), signal.SIGINT)  # timeout(1) sends it twice
                    print("goes on")
                    end = time.monotonic() + SAME_SECONDS
                    while time.monotonic() <= end:
                        pass
                    os.kill(os.getpid(), signal.SIGINT)
                    print("not reached")
        except Ended as ended:
            print(ended.number)
    """)
    assert (done.stdout, done.stderr) == (f"asked\ngoes on\n{int(signal.SIGINT)}\n", "")


def test_other_signals_end_such_a_block_and_keep_interrupts_ignored():
    done = child("""
        try:
            with orderly_end():
                try:
                    with first_interrupt(lambda: print("asked")):
                        os.kill(os.getpid(), signal.SIGTERM)
                finally:
                    os.kill(os.getpid(), signal.SIGINT)
                    print("cleaned")
        except Ended as ended:
            print(ended.number)
    """)
    assert (done.stdout, done.stderr) == (f"cleaned\n{int(signal.SIGTERM)}\n", "")


def test_after_the_block_an_interrupt_ends_again():
    done = child("""
        try:
            with orderly_end():
                with first_interrupt(lambda: print("asked")):
                    pass
                os.kill(os.getpid(), signal.SIGINT)
        except Ended as ended:
            print(ended.number)
    """)
    assert done.stdout == f"{int(signal.SIGINT)}\n"


def test_what_was_ignored_at_the_start_stays_ignored():
    done = child(
        """
        with orderly_end(), first_interrupt(lambda: print("asked")):
            for number in (signal.SIGINT, signal.SIGHUP):
                os.kill(os.getpid(), number)
        print("alive")
        """,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)],
    )
    assert (done.stdout, done.stderr) == ("alive\n", "")


def test_other_threads_are_left_alone():
    done = child("""
        import threading
        def work():
            with orderly_end(), first_interrupt(print):
                print("inside")
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """)
    assert (done.stdout, done.stderr) == ("inside\n", "")
