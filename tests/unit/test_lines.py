"""The lines for other programs: their flags exist, they run, and they keep every word."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_report import EVERYTHING, FUSE, KEYCTL, LOOP, MASKED, PORTS, SYS_ADMIN, report

from profiler.model import Capability, Device, DeviceClass, SecurityOption
from profiler.report import lines
from profiler.report.lines import setpriv_line, shell_lines, systemd_run_line
from profiler.report.manifest import Manifest, render

needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv(1) is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="dropping from the bounding set needs root")


def read(*members, **changed) -> Manifest:
    return Manifest(render(report(members, **changed)))


@needs_setpriv
def test_setpriv_has_the_flags():
    said = subprocess.run(("setpriv", "--help"), capture_output=True, text=True, check=True).stdout
    for flag in ("--bounding-set", "--inh-caps", "--ambient-caps"):
        assert flag in said
        assert any(word.startswith(flag) for word in setpriv_line(frozenset(), ("true",)))


@needs_setpriv
@needs_root
@pytest.mark.parametrize("names", [(), ("CHOWN",), ("CHOWN", "NET_RAW", "SETPCAP")])
def test_the_setpriv_line_gives_exactly_the_recipe(names):
    recipe = frozenset(Capability(name) for name in names)
    done = subprocess.run(
        setpriv_line(recipe, ("cat", "/proc/self/status")), capture_output=True, text=True, check=True
    )
    sets = dict(re.findall(r"^Cap(\w+):\s+([0-9a-f]+)$", done.stdout, re.MULTILINE))
    numbers = {"CHOWN": 0, "SETPCAP": 8, "NET_RAW": 13}
    wanted = sum(1 << numbers[name] for name in names)
    assert {name: int(value, 16) for name, value in sets.items()} == {
        "Inh": 0,
        "Prm": wanted,
        "Eff": wanted,
        "Bnd": wanted,
        "Amb": 0,
    }


def test_systemd_gets_capabilities_and_devices():
    members = frozenset({SYS_ADMIN, Capability("CHOWN"), FUSE, LOOP, DeviceClass("c", 10, 229, "rw"), MASKED})
    line = systemd_run_line(members, ("true", "-x"))
    assert line[:5] == ("systemd-run", "--pipe", "--wait", "--collect", "--same-dir")
    properties = [value for flag, value in itertools.pairwise(line) if flag == "-p"]
    assert properties == [
        "CapabilityBoundingSet=CAP_CHOWN CAP_SYS_ADMIN",
        "DevicePolicy=closed",
        "DeviceAllow=/dev/fuse rw",
        "DeviceAllow=block-7 rw",
        "DeviceAllow=/dev/char/10:229 rw",
    ]
    assert line[-3:] == ("--", "true", "-x")


def test_an_empty_recipe_empties_the_bounding_set():
    assert "CapabilityBoundingSet=" in systemd_run_line(frozenset(), ("true",))
    assert "--bounding-set=-all" in setpriv_line(frozenset(), ("true",))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_characters="\x00", blacklist_categories=("Cs",))), min_size=1))
def test_a_shell_reads_every_word_back(words):
    said = subprocess.run(
        ("bash", "-c", f"printf '%s\\0' {shell_lines(words, 40)}"), capture_output=True, check=True
    ).stdout
    assert said.decode().split("\0")[:-1] == words


def test_long_lines_are_broken_between_words_and_flags_keep_their_values():
    words = ("docker", "run", *(word for n in range(12) for word in ("--cap-add", f"CAPABILITY_{n}")), "image", "cmd")
    text = shell_lines(words, 60)
    assert all(len(line) <= 60 for line in text.splitlines())
    assert all(line.endswith(" \\") for line in text.splitlines()[:-1])
    assert not any(line.removesuffix(" \\").endswith("--cap-add") for line in text.splitlines())


def test_docker_prints_the_ready_command():
    assert lines.docker(read(SYS_ADMIN)) == "docker run --cap-drop ALL --cap-add SYS_ADMIN image mount\n"


def test_docker_for_a_workload_outside_an_engine_leaves_the_image_open():
    text = lines.docker(read(SYS_ADMIN, native=True, command=("mount",)))
    assert shlex.split(text)[-2:] == ["IMAGE", "mount"]


def test_setpriv_says_what_it_cannot_bound():
    text = lines.setpriv(read(SYS_ADMIN, FUSE, native=True, command=("mount",)))
    assert text.startswith("# setpriv bounds capabilities only; the recipe also has: /dev/fuse:rw\n")
    assert text.endswith("-- mount\n")


def test_a_docker_command_is_not_put_behind_setpriv():
    assert lines.setpriv(read(SYS_ADMIN)).endswith("-- COMMAND\n")
    assert lines.systemd(read(SYS_ADMIN)).endswith("-- COMMAND\n")


def test_compose_has_every_part():
    assert lines.compose(read(*EVERYTHING)) == (
        "services:\n"
        "  workload:\n"
        '    image: "image"\n'
        "    cap_drop:\n"
        '      - "ALL"\n'
        "    cap_add:\n"
        '      - "DAC_READ_SEARCH"\n'
        '      - "SYS_ADMIN"\n'
        "    devices:\n"
        '      - "/dev/fuse:/dev/fuse:rw"\n'
        '      - "/dev/loop0:/dev/loop0:rw"\n'
        '      - "/dev/loop1:/dev/loop1:rw"\n'
        "    security_opt:\n"
        '      - "systempaths=unconfined"\n'
        '      - "seccomp=manifest.seccomp.json"\n'
        "    sysctls:\n"
        '      "net.ipv4.ip_unprivileged_port_start": "80"\n'
    )


def test_kubernetes_has_every_part():
    text = lines.kubernetes(read(*EVERYTHING, SecurityOption("apparmor=unconfined"), SecurityOption("label=disable")))
    for part in (
        "hostUsers: false",
        '- name: "net.ipv4.ip_unprivileged_port_start"',
        "privileged: false",
        'drop: ["ALL"]',
        '            - "SYS_ADMIN"',
        'localhostProfile: "manifest.seccomp.json"',
        "procMount: Unmasked",
        "type: spc_t",
        "appArmorProfile:",
        "device plugin only: /dev/fuse:rw",
    ):
        assert part in text


def test_kubernetes_keeps_the_runtimes_filter_when_nothing_is_missing():
    text = lines.kubernetes(read(SYS_ADMIN))
    assert "type: RuntimeDefault" in text
    assert "procMount" not in text
    assert "type: Unconfined" in lines.kubernetes(read(SecurityOption("seccomp=unconfined")))


@pytest.mark.parametrize("name", lines.FORMATS)
@pytest.mark.parametrize("members", [(), EVERYTHING, (KEYCTL,), (PORTS,), (Device("/dev/x", "m"),)])
def test_every_format_renders_every_recipe(name, members):
    assert lines.FORMATS[name](read(*members)).endswith("\n")


def test_what_no_terminal_shows_is_spelled_so_that_bash_reads_it():
    words = ("printf", r"%s\0", "tab\t1", "\udcff7", "it's \\ \x1b[1m", "ä\n\x07")
    text = shell_lines(words, 1000)
    assert all(c.isprintable() for c in text)
    done = subprocess.run(("bash", "-c", text), capture_output=True, check=True)
    assert done.stdout == "".join(word + "\0" for word in words[2:]).encode("utf-8", "surrogateescape")
