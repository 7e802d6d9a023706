"""What capprofile remembers of a run is bounded, whatever the workload does: its peak memory is measured."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

LIMIT_MIB = 150
# CAPPROFILE_CALLS=1000000 makes it the size that the limit is promised for; the default takes seconds.
CALLS = int(os.environ.get("CAPPROFILE_CALLS", "20000"))

# A privileged call, over and over. `paths`: each time about another file (a link each, made and removed again).
LOOP = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
    long calls = atol(argv[1]);
    char name[4096];
    for (long i = 0; i < calls; i++) {
        const char *path = argv[2];
        if (argc > 3) {
            snprintf(name, sizeof name, "%s.%ld", argv[2], i);
            path = name;
            if (link(argv[2], name) != 0) return 2;
        }
        if (chown(path, 1000 + i % 50000, 1000) != 0) return 3;
        if (argc > 3 && unlink(name) != 0) return 4;
    }
    return 0;
}
"""

# Prints the peak resident size in KiB, the number of calls that were seen, and what was lost.
MEASURED = """
import sys
from pathlib import Path
from profiler.harness.native.sandbox import NativeSandbox
from profiler.tracer.session import trace
sandbox = NativeSandbox(sys.argv[1:], cwd="/", env={"PATH": "/usr/bin:/bin"})
try:
    found = trace(sandbox.start(sandbox.broad(), quiet=True))
finally:
    sandbox.close()
assert found.exit_code == 0, found.exit_code
calls = sum(call.count for call in found.raw_calls if call.name == "chown")
seen = sum(o.count for o in found.observations if o.call == "chown" and o.args)
# not ru_maxrss, which execve(2) carries over from whoever forked us
peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
print(peak, calls, seen, sum(found.losses.values()))
"""


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    directory = tmp_path_factory.mktemp("memory")
    directory.chmod(0o755)
    (directory / "loop.c").write_text(LOOP)
    subprocess.run([compiler, "-O1", "-o", directory / "loop", directory / "loop.c"], check=True)
    (directory / "file").touch()
    return directory


@pytest.mark.timeout(900)
@pytest.mark.parametrize("paths", [(), ("distinct",)], ids=["one-path", "distinct-paths"])
def test_many_privileged_calls_fit_into_memory(loop: Path, paths: tuple[str, ...]) -> None:
    words = (str(loop / "loop"), str(CALLS), str(loop / "file"), *paths)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    kib, calls, seen, lost = map(int, done.stdout.split())
    assert kib < LIMIT_MIB * 1024
    assert (calls, seen, lost) == (CALLS, CALLS, 0)
