"""The embedded sandbox with real processes, mounts and groups: what it grants, what it hides, what it leaves."""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pace import SLOWER

from profiler.errors import HostError, UsageError
from profiler.harness.native import cgroups
from profiler.harness.native import sandbox as native
from profiler.harness.native.sandbox import NativeSandbox
from profiler.kernel import device_filter
from profiler.kernel.capabilities import sets_of
from profiler.kernel.mountinfo import mounts_of
from profiler.leftovers import PREFIX, STATE, owner_tag
from profiler.model import Capability, Device, DeviceClass, SecurityOption, Syscalls
from profiler.tracer.session import trace

pytestmark = pytest.mark.kernel

NOTHING = frozenset()
ADMIN = frozenset({Capability("SYS_ADMIN")})
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sandbox(tmp_path):
    """Makes sandboxes in a directory of its own, and closes them."""
    made = []

    def make(*argv, cwd=tmp_path, **options):
        made.append(NativeSandbox(argv, cwd=str(cwd), env={"PATH": os.environ["PATH"], "HOME": "/root"}, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def shell(sandbox):
    """Runs a script with a recipe; returns its outcome."""

    def run(script, recipe=NOTHING, timeout=20.0 * SLOWER, **options):
        return sandbox("sh", "-c", script, **options).rerun(recipe, timeout=timeout)

    return run


def state_of_ours():
    """Directories and control groups of this test process."""
    tag = owner_tag()
    found = [path for base in (STATE, native.DISK) if base.is_dir() for path in base.glob(f"{tag}*")]
    mounts = mounts_of()
    return found + list(cgroups.leftovers(mounts, lambda name: name.startswith(tag)))


# --------------------------------------------------------------------------------------------------------------------
# The host does not change, and every run starts from the same state


def test_what_it_writes_is_gone(shell, tmp_path):
    (tmp_path / "there").write_text("host\n")
    script = "cat there && echo new > there && echo x > made && rm -rf /etc/passwd && mv /etc/apt /etc/moved && pwd"
    for _ in range(2):
        outcome = shell(script, frozenset({Capability("DAC_OVERRIDE")}))
        assert (outcome.exit_code, outcome.stderr) == (0, b"")
        assert outcome.stdout.decode().split() == ["host", str(tmp_path)]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "host\n"
    assert Path("/etc/passwd").exists()
    assert PREFIX not in Path("/proc/self/mountinfo").read_text()


def test_nothing_is_left_and_it_starts_quickly(sandbox, capsys):
    one = sandbox("true")
    started = time.monotonic()
    outcome = one.rerun(NOTHING, timeout=20 * SLOWER)
    with capsys.disabled():
        print(f"\nembedded sandbox: {time.monotonic() - started:.3f} s for a run of {outcome.seconds:.3f} s")
    assert outcome.exit_code == 0
    one.close()
    one.close()
    assert state_of_ours() == []


def test_mounts_of_the_host_have_private_layers_with_their_flags(sandbox, tmp_path):
    """In a mount namespace of a child, so that the host's table is left alone."""
    inner = tmp_path / "it's, a:dir"
    inner.mkdir()
    program = f"""
import os, json, sys
from profiler.kernel.namespaces import *
from pathlib import Path
from profiler.harness.native.sandbox import NativeSandbox
unshare(CLONE_NEWNS)
mount(None, "/", None, MS_REC | MS_PRIVATE)
where = {str(inner)!r}
mount("tmpfs", where, "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, "mode=1777")
Path(where, "file").write_text("lower")
mounted = Path({str(tmp_path)!r}, "single")
mounted.write_text("under")
source = Path(where, "source")
source.write_text("over")
mount(source, mounted, None, MS_BIND)
script = "cat file && echo new > file && echo new > ../single && stat -c %a . && grep -F it /proc/self/mountinfo"
sandbox = NativeSandbox(["sh", "-c", script], cwd=where, env=dict(os.environ))
outcome = sandbox.rerun(frozenset(), timeout=20)
sandbox.close()
left = [Path(where, "file").read_text(), mounted.read_text()]
print(json.dumps([outcome.exit_code, outcome.stdout.decode(), outcome.stderr.decode(), left]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    code, out, err, left = json.loads(done.stdout)
    assert (code, err) == (0, "")
    assert out.startswith("lower1777\n")
    assert "rw,nosuid,nodev,noexec" in out
    assert left == ["lower", "over"]


OLDER_BELOW_NEWER = """
set -e
mkdir older newer && mount -t tmpfs older older && echo kept > older/file
mount -t tmpfs newer newer && mkdir newer/below && mount --move older newer/below
"$@" sh -c "cat newer/below/file && echo changed > newer/below/file" && cat newer/below/file
"""


def test_a_mount_below_a_younger_one_has_its_layer(tmp_path):
    """As a host's that an initramfs has started: its /run is older than its root."""
    words = (sys.executable, "-m", "profiler.cli", "run", "--no-prove", "-o", "/dev/null", "--")
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", OLDER_BELOW_NEWER, "sh", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=60 * SLOWER, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "kept"
    assert done.stdout.splitlines()[-1] == "kept"


def test_the_hosts_parameters_cannot_be_written_and_its_own_can(shell):
    before = Path("/proc/sys/kernel/hostname").read_text()
    everything = frozenset(Capability(name) for name in sets_of().bounding)
    script = """
    hostname inside && echo 1 > /proc/sys/net/ipv4/ip_forward && echo 50 > /proc/sys/kernel/ns_last_pid || exit 1
    echo 1 > /proc/sys/vm/overcommit_memory && exit 2
    echo h > /proc/sysrq-trigger && exit 3
    hostname
    """
    outcome = shell(script, everything)
    assert (outcome.exit_code, outcome.stdout) == (0, b"inside\n")
    assert Path("/proc/sys/kernel/hostname").read_text() == before


def test_every_mount_can_be_mounted_again_in_other_namespaces(shell):
    """As bwrap and other sandboxes do with all that they find: nothing of ours may be out of reach there."""
    script = """
    unshare --mount --ipc --uts --net --pid --fork sh -c 'cut -d" " -f5 /proc/self/mountinfo | while read -r point; do
        mount -o remount,bind,ro none "$point" || echo "$point"
    done' 2>&1
    """
    outcome = shell(script, frozenset({Capability("SYS_ADMIN")}))
    assert (outcome.exit_code, outcome.stdout) == (0, b"")


def test_a_user_namespace_mounts_its_own_proc_as_on_the_host(shell):
    script = "unshare --map-root-user --mount --pid --fork --mount-proc sh -c 'test $$ = 1 && test -e /proc/1/exe'"
    assert shell(script, frozenset({Capability("SETFCAP")})).exit_code == 0


def test_no_path_leads_to_a_parameter_of_the_hosts(shell):
    """The /proc that makes this possible is out of reach for who cannot mount one."""
    script = """
    cut -d' ' -f5 /proc/self/mountinfo | sort -u | while read -r at; do
        test "$at" = /proc || ! test -e "$at/sys/vm/overcommit_memory" || exit 1
    done
    """
    assert shell(script).exit_code == 0


def test_a_real_time_policy_needs_a_capability_and_nothing_else(shell):
    assert shell("chrt -f 1 true", frozenset({Capability("SYS_NICE")})).exit_code == 0
    assert shell("chrt -f 1 true").exit_code == 1


def test_the_network_is_a_loopback_interface_or_the_hosts(shell):
    script = "cat /proc/net/dev | sed 1,2d | cut -d: -f1; cat /sys/class/net/lo/operstate"
    assert shell(script).stdout.decode().split() == ["lo", "unknown"]
    outcome = shell(
        "readlink /proc/self/ns/net; echo 9 > /proc/sys/net/ipv4/ip_default_ttl || echo refused", network="host"
    )
    assert outcome.stdout.decode().split()[0] == str(Path("/proc/self/ns/net").readlink())
    assert outcome.stdout.endswith(b"refused\n")


# --------------------------------------------------------------------------------------------------------------------
# A rerun has the recipe and nothing else


def test_all_sets_are_the_recipes(shell):
    outcome = shell("cat /proc/self/status", frozenset({Capability("SYS_ADMIN"), Capability("CHOWN")}))
    fields = dict(line.split(":\t", 1) for line in outcome.stdout.decode().splitlines() if ":\t" in line)
    for name in ("CapBnd", "CapPrm", "CapEff"):
        assert int(fields[name], 16) == 1 << 21 | 1 << 0
    for name in ("CapInh", "CapAmb"):
        assert int(fields[name], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("0", "0")


def test_mount_needs_sys_admin(shell):
    script = "mount -t tmpfs none /mnt && echo mounted"
    assert shell(script, ADMIN).stdout == b"mounted\n"
    assert shell(script).exit_code != 0


def test_only_the_recipes_devices_are_there(shell):
    script = "find /dev -type b -o -type c | sort"
    standard = [f"/dev/{name}" for name in ("full", "null", "pts/ptmx", "random", "tty", "urandom", "zero")]
    assert shell(script).stdout.decode().split() == standard
    outcome = shell(script, frozenset({Device("/dev/fuse", "rw"), Device("/dev/not-there")}))
    assert outcome.stdout.decode().split() == sorted([*standard, "/dev/fuse"])
    outcome = shell(script, frozenset({DeviceClass("b", 7)}))
    assert set(standard) < set(outcome.stdout.decode().split())


def test_nodes_that_it_makes_are_limited_too(shell):
    made = (
        "mknod /opt/fuse c 10 229 && true < /opt/fuse && echo opened; "
        "mknod /opt/zero c 1 5 && head -c1 /opt/zero | wc -c"
    )
    maker = frozenset({Capability("MKNOD")})
    assert shell(made, maker).stdout == b"1\n"
    fuse = Path("/dev/fuse").stat()
    assert (os.major(fuse.st_rdev), os.minor(fuse.st_rdev)) == (10, 229)
    assert shell(made, maker | {DeviceClass("c", 10, 229, "rwm")}).stdout == b"opened\n1\n"


def test_the_broad_recipe_has_every_device_and_no_limit(sandbox):
    one = sandbox("sh", "-c", "find /dev -type b -o -type c; mknod /opt/n c 10 229 && true < /opt/n && echo opened")
    outcome = one.rerun(one.broad(), timeout=20 * SLOWER)
    seen = set(outcome.stdout.decode().split())
    nodes = {p.path for p in one.broad() if isinstance(p, Device)}
    assert nodes <= seen
    assert "opened" in seen
    assert {p.name for p in one.broad() if isinstance(p, Capability)} == one.facts().grantable


def test_set_user_id_programs_gain_within_the_bounding_set(shell):
    script = """
    cp /usr/bin/id /usr/bin/grep /opt/ && chmod u+s /opt/id /opt/grep
    setpriv --reuid 65534 --regid 65534 --clear-groups /opt/id -u
    setpriv --reuid 65534 --regid 65534 --clear-groups /opt/grep CapEff /proc/self/status
    """
    outcome = shell(script, frozenset({Capability("SETUID"), Capability("SETGID")}))
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.decode().split() == ["0", "CapEff:", f"{1 << 7 | 1 << 6:016x}"]


def test_control_groups_are_its_own(shell):
    """It makes groups in every hierarchy that it has; none is left, and it cannot see where it is."""
    trees = shell("grep -o ' /sys/fs/cgroup[^ ]* [^ ]* - cgroup' /proc/self/mountinfo | cut -d' ' -f2").stdout.split()
    assert trees
    script = "for tree in $0 $@; do mkdir $tree/made-inside || exit 1; done; cut -d: -f3 /proc/self/cgroup | sort -u"
    outcome = shell(f"set -- {b' '.join(trees).decode()}; " + script.replace("$0 ", ""))
    assert (outcome.exit_code, outcome.stdout) == (0, b"/\n"), outcome.stderr
    assert not list(Path("/sys/fs/cgroup").rglob("made-inside"))


# --------------------------------------------------------------------------------------------------------------------
# It behaves as a command does


@pytest.mark.parametrize(
    ("script", "code"), [("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("kill 0", 143)]
)
def test_exit_codes(shell, script, code):
    assert shell(script).exit_code == code


def test_a_missing_command_is_the_shells_answer(sandbox, tmp_path):
    outcome = sandbox("no-such-command").rerun(NOTHING, timeout=20 * SLOWER)
    assert (outcome.exit_code, outcome.stderr) == (127, b"capprofile: no-such-command: No such file or directory\n")
    (tmp_path / "data").write_text("no program")
    assert sandbox("./data").rerun(NOTHING, timeout=20 * SLOWER).exit_code == 126


def test_it_is_not_process_1_and_its_orphans_end_with_it(shell):
    marker = f"{os.getpid()}.5"
    outcome = shell(f"(setsid sleep {marker} &) ; echo $$; cat /proc/1/comm")
    assert outcome.stdout.decode().split()[0] == "2"
    assert marker not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_output_is_kept_to_its_tail(shell):
    outcome = shell("seq 1 40000; echo end; echo words >&2")
    assert outcome.stdout.endswith(b"40000\nend\n")
    assert len(outcome.stdout) == 64 * 1024
    assert outcome.stderr == b"words\n"


def test_timeout_ends_everything(shell):
    marker = f"{os.getpid()}.25"
    outcome = shell(f"trap '' TERM; sleep {marker} & sleep {marker}", timeout=0.3)
    assert outcome.timed_out
    assert outcome.exit_code == 137
    assert marker not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_reruns_in_parallel(sandbox):
    one = sandbox("sh", "-c", "mount -t tmpfs none /mnt && echo > /mnt/x && hostname a")
    assert one.parallel()
    codes = {}

    def rerun(slot):
        codes[slot] = one.rerun(ADMIN, timeout=30 * SLOWER, slot=slot).exit_code

    threads = [threading.Thread(target=rerun, args=(slot,)) for slot in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {0: 0, 1: 0, 2: 0}


def test_a_directory_that_is_not_there(sandbox):
    with pytest.raises(HostError, match="not-there"):
        sandbox("true", cwd="/not-there").rerun(NOTHING, timeout=20 * SLOWER)


def test_arguments_are_checked():
    with pytest.raises(UsageError):
        NativeSandbox((), cwd="/", env={})
    with pytest.raises(UsageError):
        NativeSandbox(("true",), cwd="/", env={}, network="bridge")


def test_facts_and_advice(sandbox):
    one = sandbox("true")
    facts = one.facts()
    assert (one.name, facts.engine, one.image(), one.command()) == ("native", "native", ("", ""), ("true",))
    assert facts.grantable == sets_of().bounding
    assert not facts.grantable & set(facts.not_granted)
    recipe = ADMIN | {Device("/dev/fuse", "rw"), SecurityOption("apparmor=unconfined"), Syscalls(("keyctl",))}
    args = one.docker_args(recipe)
    assert args[:6] == ("--cap-drop", "ALL", "--cap-add", "SYS_ADMIN", "--device", "/dev/fuse:/dev/fuse:rw")
    assert one.docker_command(recipe) == ()
    assert one.filter_of(frozenset()) is None


# --------------------------------------------------------------------------------------------------------------------
# The traced run: held at the gate, on our own stdio. In a child, whose stdio it is.

TRACED = """
import os, sys, time
from profiler.harness.native.sandbox import NativeSandbox
from profiler.kernel.steer import Steered
sandbox = NativeSandbox(sys.argv[2:], cwd="/tmp", env={"PATH": os.environ["PATH"], "WORD": "caf\\udce9"})
run = sandbox.start(sandbox.broad())
caught = run.caught
assert os.readlink(f"/proc/{caught.pid}/exe").startswith("/memfd:capprofile-gate"), caught
assert caught.credentials is None
tracee = Steered.seize(caught.pid)
tracee.execute(caught.argv, caught.env)
print("pid", caught.pid, file=sys.stderr, flush=True)
if sys.argv[1] == "hold":
    tracee.hold()
tracee.detach()
outcome = run.wait(time.monotonic() + float(sys.argv[1]) if sys.argv[1] != "hold" else None)
run.close()
print("outcome", outcome.exit_code, outcome.timed_out, file=sys.stderr, flush=True)
if outcome.timed_out:
    sys.exit(sandbox.close())
if sys.stdin.isatty():
    print("foreground", os.tcgetpgrp(0) == os.getpgrp())
    sys.exit(sandbox.close())
print("again", sandbox.rerun(sandbox.broad(), timeout=20).stdout.decode(errors="surrogateescape"), file=sys.stderr)
sandbox.close()
"""


def traced(patience, *argv, **options):
    return subprocess.run(
        [sys.executable, "-c", TRACED, patience, *argv],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
        **options,
    )


@pytest.mark.parametrize("patience", ["hold", "20"])
def test_the_traced_run_goes_through_the_gate(patience):
    done = traced(patience, "sh", "-c", "cat; echo $WORD; exit 3", input="piped in\n")
    assert done.stdout == "piped in\ncaf\udce9\n", done.stderr
    assert "outcome 3 False" in done.stderr
    assert "again piped in\ncaf\\udce9\n" in done.stderr  # as Python writes it there


def test_the_traced_run_is_stopped_at_its_deadline():
    done = traced("0.3", "sh", "-c", "trap 'exit 9' TERM; sleep 60 & wait", stdin=subprocess.DEVNULL)
    assert "outcome 9 True" in done.stderr, done.stderr


def test_closing_a_held_run_ends_it(sandbox, wait_until):
    one = sandbox("true")
    run = one.start(one.broad())
    pid = run.caught.pid
    assert sets_of(pid).bounding == one.facts().grantable
    run.close()
    run.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_terminal_is_the_workloads_until_it_ends():
    """Ctrl-C reaches the workload alone, and we are the foreground group again afterwards."""
    pid, terminal = pty.fork()
    if pid == 0:
        command = ["sh", "-c", "tty; echo ready; exec sleep 60"]
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", TRACED, "20", *command])
    text, sent = b"", False
    try:
        while chunk := os.read(terminal, 4096):
            text += chunk
            if b"ready" in text and not sent:
                os.write(terminal, b"\x03")
                sent = True
    except OSError:  # EIO: every process of the terminal has ended
        pass
    os.close(terminal)
    os.waitpid(pid, 0)
    assert b"/dev/console" in text
    assert b"outcome 130 False" in text, text
    assert b"foreground True" in text


def test_a_quiet_run_reads_what_the_first_read():
    program = """
import os, sys
from profiler.harness.native.sandbox import NativeSandbox
from profiler.kernel.steer import Steered
sandbox = NativeSandbox(["sh", "-c", "read x; echo out; exit $x"], cwd="/", env={"PATH": os.environ["PATH"]})
for quiet in (False, True):
    run = sandbox.start(sandbox.broad(), quiet=quiet)
    tracee = Steered.seize(run.caught.pid)
    tracee.execute(run.caught.argv, run.caught.env)
    tracee.detach()
    print(run.wait().exit_code, flush=True)
sandbox.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, input="5\n", check=False
    )
    assert done.stdout == "out\n5\n5\n", done.stderr


def test_the_helpers_end_ends_everything(sandbox, wait_until):
    one = sandbox("sleep", "60")
    run = one.start(one.broad())
    pid = run.caught.pid
    init = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    helper = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(helper, signal.SIGKILL)
    assert run.wait().exit_code == 137
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    run.close()
    one.close()
    assert state_of_ours() == []


def test_without_a_disk_the_layers_are_in_memory(tmp_path):
    """The two places for layers are on overlayfs, as in a container, which no upper layer may be."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    program = f"""
import os
from profiler.harness.native import sandbox as native
from profiler.kernel.namespaces import *
unshare(CLONE_NEWNS)
mount(None, "/", None, MS_REC | MS_PRIVATE)
base = {str(tmp_path)!r}
layers = f"lowerdir={{base}}/lower,upperdir={{base}}/upper,workdir={{base}}/work"
mount("overlay", base + "/lower", "overlay", 0, layers)
for place in ("STATE", "DISK"):
    setattr(native, place, type(native.STATE)(base) / "lower" / place)
script = "echo x > /opt/x && ls " + base + "/lower"
sandbox = native.NativeSandbox(["sh", "-c", script], cwd="/", env=dict(os.environ))
outcome = sandbox.rerun(frozenset(), timeout=20)
print(outcome.exit_code, outcome.stdout, outcome.stderr, sandbox.notes())
sandbox.close()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("0 b'' b'' ("), done.stdout + done.stderr
    assert "kept in memory" in done.stdout
    assert not Path("/opt/x").exists()


def test_killing_the_parent_leaves_nothing(wait_until):
    arguments = [
        sys.executable,
        "-c",
        TRACED,
        "60",
        "sh",
        "-c",
        "touch /opt/x; trap '' TERM HUP; sleep 60 & wait; wait",
    ]
    parent = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert parent.stderr is not None
    pid = int(parent.stderr.readline().split()[1])
    tag = owner_tag().replace(str(os.getpid()), str(parent.pid)).rpartition("-")[0]
    assert list(native.DISK.glob(f"{tag}-*")) or list(STATE.glob(f"{tag}-*"))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stderr.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    # The helper outlives both for a moment, and takes the layers away.
    wait_until(lambda: not list(native.DISK.glob(f"{tag}-*")))
    mounts = mounts_of()
    wait_until(lambda: not cgroups.leftovers(mounts, lambda name: name.startswith(tag)))
    native.clean_leftovers()  # the parent's own directory, with the record of its stdin
    assert not list(STATE.glob(f"{tag}-*"))


# --------------------------------------------------------------------------------------------------------------------
# The device limits of the unified hierarchy


def test_device_filter_on_the_unified_hierarchy(node_path):
    mounts = mounts_of()
    unified = next((mount.point for mount in mounts if mount.fstype == "cgroup2" and mount.root == "/"), None)
    if unified is None:
        pytest.skip("no unified hierarchy is mounted")
    group = Path(unified) / f"{owner_tag()}-filter"
    group.mkdir()
    node = node_path / "node"
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(10, 229))
    try:
        device_filter.limit(group, ("c *:* m", "c 1:3 rwm", "c 10:229 r"))
        program = f"""
import os, sys
open(sys.argv[1], "w").write("0")
for path, flags in (("/dev/null", os.O_RDWR), ("{node}", os.O_RDONLY), ("{node}", os.O_RDWR), ("/dev/zero", 0)):
    try:
        os.close(os.open(path, flags))
        print("ok")
    except OSError as error:
        print(error.strerror)
"""
        done = subprocess.run(
            [sys.executable, "-c", program, group / "cgroup.procs"], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines() == ["ok", "ok", "Operation not permitted", "Operation not permitted"]
    finally:
        group.rmdir()


def test_a_rule_that_is_none():
    with pytest.raises(ValueError, match="a 1:3"):
        device_filter.program(["a 1:3 rwm"])


# --------------------------------------------------------------------------------------------------------------------
# Watched once more with a lean recipe

STATE_OF_PRIVILEGE = (
    "grep -E '^(Cap(Prm|Eff|Inh|Bnd)|NoNewPrivs)' /proc/self/status; "
    "setpriv --reuid=65534 --clear-groups grep -E '^(CapPrm|CapBnd|Uid)' /proc/self/status 2>&1"
)


@pytest.mark.parametrize("names", [(), ("SETUID", "SETGID", "KILL")])
def test_a_watched_lean_run_has_the_privileges_of_its_rerun(sandbox, names):
    """What steering needs (SYS_ADMIN, SETPCAP) is gone before the workload begins, and no_new_privs is not set."""
    recipe = frozenset(map(Capability, names))
    first = sandbox("sh", "-c", STATE_OF_PRIVILEGE).rerun(recipe, timeout=20 * SLOWER).stdout.decode()
    assert "NoNewPrivs:\t0" in first
    # The output of a watched run is thrown away: the workload itself tells whether it is the same.
    run = sandbox("sh", "-c", f'[ "$({STATE_OF_PRIVILEGE})" = "{first.strip()}" ]').start(recipe, quiet=True)
    assert run.caught.capabilities == frozenset(names)
    watched = trace(run)
    assert watched.exit_code == 0
    assert "no_new_privs" not in watched.losses
