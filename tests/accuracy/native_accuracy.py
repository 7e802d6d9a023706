"""How exact the embedded sandbox's recipes are: profiles every workload and asks the oracle of each member.

    sudo python tests/accuracy/native_accuracy.py [-o FILE] [--no-prove] [--docker] [NAME…]

A recipe is exact when the workload passes with all of it and fails without each of its members. With --docker the same
workloads run in a container with these tools, and Docker's oracle judges. One line a workload; with -o a JSON list with
every screen. Not part of `make test`: it takes half an hour.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import docker_oracle  # noqa: E402 (found by the line above)
import images  # noqa: E402
import native_oracle  # noqa: E402

FILES = ("native_workloads.toml", "native_calls.toml")
PYTHON = "/usr/bin/python3"
LIMIT = 120.0  # seconds for one run
TOOLS = (
    "acl", "arping", "bindfs", "bubblewrap", "busybox-static", "conntrack", "e2fsprogs", "ethtool", "firejail",
    "fuse2fs", "gcc", "gdb", "hping3", "ipset", "iperf3", "iproute2", "iptables", "iputils-ping", "keyutils",
    "libc6-dev", "libcap2-bin", "lsof", "ltrace", "net-tools", "nftables", "nmap", "openvpn", "procps", "psmisc",
    "python3", "socat", "squashfs-tools", "squashfuse", "strace", "sudo", "tcpdump", "traceroute", "xfsprogs",
)  # fmt: skip


def workloads(*files: str) -> dict[str, list[str]]:
    """Every workload's command by its name, of these files or all; `vary` gives one for each value of a word."""
    tables = {
        name: table for file in files or FILES for name, table in tomllib.loads((HERE / file).read_text()).items()
    }
    prelude = tables.pop("prelude")
    found: dict[str, list[str]] = {}
    for name, table in tables.items():
        for word, values in table.get("vary", {"": [""]}).items():
            for value in values:
                body = table.get("py", "").replace(word, value) if word else table.get("py", "")
                argv = [PYTHON, "-c", prelude + body] if body else ["bash", "-ec", table["sh"]]
                found[f"{name}={value}" if word else name] = [*_become(table.get("user")), *argv]
    return found


def _become(capability: str | None) -> list[str]:
    """The words that make a command run as uid 1000 with one capability ("": none); nothing for None."""
    if capability is None:
        return []
    kept = [f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}"] if capability else ["--inh-caps=-all"]
    return ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", *kept]


def measure_docker(name: str, argv: list[str], options: list[str]) -> dict[str, object]:
    """The same in a container with these tools, judged by Docker's oracle."""
    with tempfile.TemporaryDirectory(prefix="accuracy-", dir="/var/tmp") as place:
        manifest = Path(place, "manifest.json")
        command = ["docker", "run", "--rm", "--privileged", "-w", "/srv", images.userland("calls", TOOLS), *argv]
        began = time.monotonic()
        done = subprocess.run(
            ["capprofile", "run", "-o", str(manifest), *options, "--", *command],
            capture_output=True, text=True, errors="replace", timeout=LIMIT * 10, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        row: dict[str, object] = {
            "name": name, "code": done.returncode, "seconds": round(time.monotonic() - began, 2),
            "screen": done.stdout + done.stderr,
        }  # fmt: skip
        if done.returncode not in (0, 5) or not manifest.exists():
            return {**row, "verdict": "broken" if done.returncode != 4 else "cannot"}
        told = json.loads(manifest.read_text())
        recipe, runs = told["recipe"], told["verification"]["runs"]
        found = docker_oracle.judge(recipe["docker_command"], recipe.get("syscalls", ()), runs=1)
        verdict = "fails" if found.failing else f"too much: {' '.join(found.spare)}" if found.spare else "exact"
        return {**row, "verdict": verdict, "recipe": recipe["privileges"], "runs": len(runs), "status": done.returncode,
                "losses": told["losses"], "purposes": [r.get("purpose", "") for r in runs]}  # fmt: skip


def measure(name: str, argv: list[str], options: list[str]) -> dict[str, object]:
    """One workload's row: what capprofile said, what it took, and what the oracle says."""
    with tempfile.TemporaryDirectory(prefix="accuracy-", dir="/var/tmp") as place:
        Path(place).chmod(0o755)
        manifest = Path(place, "manifest.json")
        work = Path(place, "work")
        work.mkdir()
        began = time.monotonic()
        done = subprocess.run(
            ["capprofile", "run", "-o", str(manifest), *options, "--", *argv],
            cwd=work, capture_output=True, text=True, errors="replace", timeout=LIMIT * 10, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        row: dict[str, object] = {
            "name": name, "code": done.returncode, "seconds": round(time.monotonic() - began, 2),
            "screen": done.stdout + done.stderr, "left": sorted(path.name for path in work.iterdir()),
        }  # fmt: skip
        if done.returncode not in (0, 5) or not manifest.exists():
            return {**row, "verdict": "broken" if done.returncode != 4 else "cannot"}
        told = json.loads(manifest.read_text())
        members = frozenset(told["recipe"]["privileges"])
        with_all = native_oracle.passes(argv, members, LIMIT, work)
        spare = sorted(m for m in members if native_oracle.passes(argv, members - {m}, LIMIT, work)) if with_all else []
        verdict = "fails" if not with_all else f"too much: {' '.join(spare)}" if spare else "exact"
        runs = told["verification"]["runs"]
        return {**row, "verdict": verdict, "recipe": sorted(members), "runs": len(runs), "status": done.returncode,
                "losses": told["losses"], "purposes": [r.get("purpose", "") for r in runs]}  # fmt: skip


def main() -> int:
    """Measure the named workloads (all by default); exits with 1 when one is not exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--no-prove", action="store_true")
    parser.add_argument("--docker", action="store_true")
    parser.add_argument("--again", type=Path, help="only what was not exact in this earlier output")
    parser.add_argument("names", nargs="*", help="regular expressions; all by default")
    options = parser.parse_args()
    wanted = re.compile("|".join(f"(?:{name})" for name in options.names) or ".*")
    all_ = workloads()
    chosen = {name: argv for name, argv in all_.items() if wanted.fullmatch(name)}
    if options.again:
        bad = {row["name"] for row in json.loads(options.again.read_text()) if row["verdict"] != "exact"}
        chosen = {name: argv for name, argv in chosen.items() if name in bad}
    rows = []
    for name, argv in chosen.items():
        row = (measure_docker if options.docker else measure)(
            name, argv, ["--no-prove"] if options.no_prove else ["--prove"]
        )
        rows.append(row)
        print(f"{row['verdict']:10} {name:28} {row['seconds']:>6} s {row.get('runs', '-'):>3} runs  "
              f"{' '.join(map(str, row.get('recipe', ())))}", flush=True)  # fmt: skip
        if options.output:
            options.output.write_text(json.dumps(rows, indent=1))
    exact = sum(row["verdict"] == "exact" for row in rows)
    cannot = sum(row["verdict"] == "cannot" for row in rows)
    print(f"{exact} of {len(rows) - cannot} exact; {cannot} cannot run here")
    return int(exact + cannot != len(rows))


if __name__ == "__main__":
    sys.exit(main())
