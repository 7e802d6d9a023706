"""Swap areas that a run leaves on: told from everybody else's, switched off, and their loop devices let go of."""

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pace import SLOWER

from profiler.harness.loops import let_go, swap_off_below
from profiler.harness.native.sandbox import NativeSandbox
from profiler.kernel.loops import bound
from profiler.kernel.swaps import swap_files, swapoff

pytestmark = pytest.mark.kernel

IMAGE = "truncate -s 16M image && mkfs.ext4 -q image && mkdir at && mount -o loop image at"
# A file on a mounted image, the device itself, and a file on an image on the image: dd, as a swap file has no holes.
AREAS = {
    "file": f"{IMAGE} && dd if=/dev/zero of=at/swap bs=1M count=4 && mkswap at/swap && swapon at/swap",
    "device": "truncate -s 4M image && node=$(losetup -f --show image) && mkswap $node && swapon $node",
    "nested": f"{IMAGE} && truncate -s 8M at/inner && mkfs.ext4 -q at/inner && mkdir in && "
    "mount -o loop at/inner in && dd if=/dev/zero of=in/swap bs=1M count=2 && mkswap in/swap && swapon in/swap",
}
# A file system of the run's own, which has no path once it is gone; also one that only a part of the run has seen.
AREAS["tmpfs"] = f"mount -t tmpfs none /mnt && cd /mnt && {AREAS['file']}"
AREAS["namespace"] = (
    f"unshare --mount sh -c '{AREAS['tmpfs']} && exec sleep 60 > /dev/null' & "
    "for i in $(seq 100); do grep -q /swap /proc/swaps && break; sleep 0.1; done; grep -q /swap /proc/swaps"
)


def areas():
    return {line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]}


def in_use():
    """What a run may not leave behind: swap areas and bound loop devices."""
    return areas() | {loop.node for loop in bound()}


@pytest.fixture
def sandbox(tmp_path):
    """A sandbox for a script in a directory of its own, once that has been seen to switch swap on here."""
    before = in_use()
    made = []

    def make(script):
        made.append(NativeSandbox(("sh", "-c", script), cwd=str(tmp_path), env={"PATH": os.environ["PATH"]}))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert in_use() <= before


def rerun(one, seconds=30.0 * SLOWER):
    return one.rerun(one.broad(), timeout=seconds)


def skip_without_swap(outcome):
    if outcome.exit_code == 1:
        pytest.skip(f"no swap on a loop device here: {outcome.stderr.decode()}")


@pytest.mark.parametrize("kind", AREAS)
def test_what_a_failing_run_has_switched_on_is_switched_off(sandbox, kind):
    before, swaps = in_use(), areas()
    outcome = rerun(sandbox(f"{{ {AREAS[kind]}; }} > /dev/null || exit 1; cat /proc/swaps; exit 7"))
    skip_without_swap(outcome)
    assert outcome.exit_code == 7
    assert len(outcome.stdout.splitlines()) > len(swaps) + 1
    assert in_use() <= before


def test_so_is_that_of_a_sandbox_whose_helper_was_killed(sandbox, wait_until):
    before = in_use()
    one = sandbox(f"{{ {AREAS['file']}; }} > /dev/null || exit 1; exec sleep 60")
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(rerun, one)
        wait_until(lambda: areas() - before or ended.done())
        if ended.done():
            skip_without_swap(ended.result())
        (helper,) = one._reruns
        os.kill(helper._process.pid, signal.SIGKILL)
        assert ended.result().exit_code == 137
    assert in_use() <= before


@pytest.fixture
def mounted(tmp_path):
    """A swap file on a mounted loop device of this host's own, on until the end."""
    script = f"cd {tmp_path}; {AREAS['file']}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    at = tmp_path / "at"
    if done.returncode == 0:
        yield at
    subprocess.run(["swapoff", at / "swap"], capture_output=True, check=False)
    subprocess.run(["umount", at], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no swap on a loop device here: {done.stderr}")


def test_what_is_nobodys_run_stays_on(mounted, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "swap").write_bytes(bytes(1 << 16))  # of the same name, and no swap area
    done = subprocess.run(["losetup", "-f", "--show", own / "swap"], capture_output=True, text=True, check=True)
    before = areas()
    try:
        swap_off_below([str(own)])
        assert let_go([loop for loop in bound() if loop.node == done.stdout.strip()]) == (done.stdout.strip(),)
        assert areas() >= before
    finally:
        subprocess.run(["losetup", "-d", done.stdout.strip()], capture_output=True, check=False)
    assert str(mounted / "swap") in swap_files()


def test_a_swap_file_below_a_directory_is_switched_off_once(mounted):
    swap_off_below([str(mounted)])
    assert str(mounted / "swap") not in swap_files()
    assert not swapoff(str(mounted / "swap"))
