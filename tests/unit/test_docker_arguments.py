"""The grammar of `docker run` and what is special about some of its flags."""

import re
import subprocess
import sys

import pytest

from profiler.errors import HostError, UsageError
from profiler.harness.docker import cautions
from profiler.harness.docker.arguments import RUN, behind_wrapper, names_engine, parse
from profiler.harness.docker.flags import flags_of
from profiler.model import AllowList, Capability, Device, DeviceClass, SecurityOption, Syscalls, Sysctl


def docker(*words):
    return parse(("docker", *words))


def test_command_is_read_into_its_parts():
    run = docker("-H", "unix:///x.sock", "run", "--rm", "--privileged", "-v", "/a:/b", "image:1", "sh", "-c", "ls -l")
    assert run.binary == "docker"
    assert [(flag.name, flag.value) for flag in run.global_flags] == [("host", "unix:///x.sock")]
    assert [(flag.name, flag.value) for flag in run.flags] == [
        ("rm", "true"),
        ("privileged", "true"),
        ("volume", "/a:/b"),
    ]
    assert run.image == "image:1"
    assert run.command == ("sh", "-c", "ls -l")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (("-p", "80:80"), "publish", "80:80"),
        (("-p80:80",), "publish", "80:80"),
        (("-p=80:80",), "publish", "80:80"),
        (("-eFOO=1",), "env", "FOO=1"),
        (("-e=FOO",), "env", "FOO"),
        (("--env=FOO=1",), "env", "FOO=1"),
        (("--entrypoint=",), "entrypoint", ""),
        (("--entrypoint", ""), "entrypoint", ""),
        (("--name", "--odd"), "name", "--odd"),
        (("--net=host",), "network", "host"),
        (("-d=false",), "detach", "false"),
        (("--privileged=false",), "privileged", "false"),
        (("-ituroot",), "user", "root"),
        (("-itu", "root"), "user", "root"),
        (("--gpus", "all"), "gpus", "all"),
        (("--use-api-socket",), "use-api-socket", "true"),
        (("--annotation", "a=b"), "annotation", "a=b"),
    ],
)
def test_every_way_to_write_a_flag(words, name, value):
    run = docker("run", *words, "image", "cmd")
    assert (run.flags[-1].name, run.flags[-1].value) == (name, value)
    assert (run.image, run.command) == ("image", ("cmd",))
    assert run.rendered() == ("docker", "run", *words, "image", "cmd")


@pytest.mark.parametrize(
    ("argv", "image", "command"),
    [
        (("run", "--", "image", "--privileged"), "image", ("--privileged",)),
        (("run", "image", "--", "x"), "image", ("--", "x")),
        (("run", "-i", "image"), "image", ()),
        (("container", "run", "image", "-it"), "image", ("-it",)),
    ],
)
def test_flags_end_at_the_image(argv, image, command):
    run = docker(*argv)
    assert (run.image, run.command) == (image, command)


def test_cluster_loses_only_what_is_taken_out():
    run = docker("run", "-itd", "-p", "1:1", "image")
    assert run.without({"detach"}).rendered(("--x",)) == ("docker", "run", "-it", "-p", "1:1", "--x", "image")
    assert docker("run", "-dp", "1:1", "image").without({"detach"}).rendered() == (
        "docker",
        "run",
        "-p",
        "1:1",
        "image",
    )
    assert docker("container", "run", "image").rendered()[:3] == ("docker", "container", "run")


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (("docker", "run"), "no image", "docker run"),
        (("docker", "run", "--rm"), "no image", ""),
        (("docker", "run", ""), "no image", ""),
        (("docker", "run", "--privilegd", "i"), "--privilegd", "--privileged"),
        (("docker", "run", "--capadd=X", "i"), "--capadd", "--cap-add"),
        (("docker", "run", "-x", "i"), "-x", "--help"),
        (("docker", "run", "-itx", "i"), "-x", ""),
        (("docker", "run", "--name"), "--name needs a value", ""),
        (("docker", "run", "-v"), "-v needs a value", ""),
        (("docker", "run", "--rm=maybe", "i"), "maybe", "--rm=false"),
        (("docker", "exec", "c", "sh"), "docker exec", "docker run"),
        (("docker", "container", "ls"), "docker container ls", ""),
        (("docker",), "docker run", ""),
        (("docker", "--hots", "x", "run", "i"), "--hots", "--host"),
        (("sh",), "sh", ""),
        ((), "nothing", ""),
    ],
)
def test_what_docker_would_refuse_is_refused_by_name(argv, message, hint):
    with pytest.raises(UsageError) as caught:
        parse(argv)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_podman_is_refused_as_a_host_without_docker():
    with pytest.raises(HostError, match="podman"):
        parse(("/usr/bin/podman", "run", "image"))
    with pytest.raises(HostError, match="nerdctl"):
        parse(("nerdctl", "run", "image"))


@pytest.mark.parametrize(
    ("words", "hint"), [("build .", "a step"), ("compose up", "compose config"), ("ps", "write it as")]
)
def test_what_is_no_run_is_refused_with_what_to_do_instead(words, hint):
    with pytest.raises(UsageError) as raised:
        parse(("docker", *words.split()))
    assert hint in raised.value.hint


def test_clients_are_known_by_their_last_component():
    assert names_engine(("/usr/bin/docker", "run"))
    assert names_engine(("podman", "run"))
    assert names_engine(("nerdctl", "container", "run"))
    assert not names_engine(("podman", "build", "."))
    assert not names_engine(("docker-compose",))
    assert not names_engine(())


@pytest.mark.parametrize("wrapper", [("sudo",), ("/usr/bin/sudo", "-E"), ("env", "A=b"), ("timeout", "9")])
def test_a_run_behind_a_wrapper_is_known(wrapper):
    assert behind_wrapper((*wrapper, "docker", "run", "image")) == ("docker", "run", "image")


@pytest.mark.parametrize("words", ["sudo docker ps", "sudo sh -c docker", "sh docker run", "docker run image", "sudo"])
def test_other_commands_hide_no_run(words):
    assert behind_wrapper(tuple(words.split())) == ()


def test_table_knows_every_flag_of_this_machines_client():
    try:
        text = subprocess.run(["docker", "run", "--help"], capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no docker client here")
    assert len(RUN.valued) > 80
    for line in text.partition("Options:")[2].splitlines():
        words = line.split()
        # newer clients list the values of an option below its text ('host':, '':), far to the right
        if not words or not re.match(r" {2,6}-", line):
            continue
        if words[0].endswith(","):
            assert RUN.short[words[0][1:-1]] == words[1][2:]
            words.pop(0)
        name = words[0][2:]
        takes_value = line.index(name) + len(name) + 1 < len(line) and line[line.index(name) + len(name) + 1] != " "
        assert name in (RUN.valued if takes_value else RUN.boolean), name


def test_recipe_replaces_what_privileged_gave_and_keeps_what_is_the_users_own():
    words = (
        *("--privileged", "--cap-add", "SYS_ADMIN", "--cap-drop=ALL", "--device", "/dev/fuse"),
        *("--device=/dev/a:/dev/a:rw", "--security-opt", "seccomp=unconfined", "--device-cgroup-rule", "c 1:1 rwm"),
        *("--security-opt", "no-new-privileges:true", "--device", "nvidia.com/gpu=0"),
        *("--security-opt", "label=disable", "--security-opt", "label=type:svirt_apache_t"),
        *("--device", "/dev/sda:/dev/xvda", "--gpus", "all", "--ulimit", "nofile=10"),
    )  # fmt: skip
    run = docker("run", *words, "image")
    kept = run.where(lambda flag: not cautions.is_replaced(flag))
    assert [flag.value for flag in kept.flags] == [
        "no-new-privileges:true",
        "nvidia.com/gpu=0",
        "label=type:svirt_apache_t",
        "/dev/sda:/dev/xvda",
        "all",
        "nofile=10",
    ]
    notes = cautions.notes(run)
    assert "--privileged is replaced by the recipe" in notes
    assert "--device /dev/sda:/dev/xvda is kept as yours" in notes


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("-v", "/var/run/docker.sock:/var/run/docker.sock"), "engine"),
        (("--mount", "type=bind,src=/run/docker.sock,dst=/s"), "engine"),
        (("--use-api-socket",), "engine"),
        (("--pid", "host"), "--pid=host"),
        (("--net=host",), "--network=host"),
        (("--userns=host",), "--userns=host"),
        (("-v", "/:/host"), "/ of the host"),
        (("-v", "/etc/:/x:ro"), "/etc of the host"),
        (("--mount", "type=bind,source=/sys,target=/sys"), "/sys of the host"),
        (("-v", "/sys/fs/cgroup:/sys/fs/cgroup:rw"), "/sys/fs/cgroup of the host is mounted: who can write"),
        (("-v", "/sys/fs/cgroup/memory:/m"), "/sys/fs/cgroup/memory of the host is mounted: who can write"),
        (("-v", "/proc/sys/../sys/net:/net"), "/proc/sys/net of the host"),
        (("--cap-add", "SYS_ADMIN"), "--cap-drop ALL"),
    ],
)
def test_what_no_recipe_makes_safe_is_said(words, part):
    assert part in " ".join(cautions.warnings(docker("run", *words, "image")))


def test_nothing_is_said_of_ordinary_flags():
    words = ("-v", "/srv/data:/data", "-v", "name:/etc", "--cap-drop", "ALL", "--cap-add", "KILL", "--network", "none")
    assert cautions.warnings(docker("run", *words, "-v", "/system/x:/x", "image")) == ()


@pytest.mark.parametrize(
    "words",
    [
        ("--name", "x"),
        ("-p", "80:80"),
        ("-p", "127.0.0.1:80:80/tcp"),
        ("-p", "published=80,target=80"),
        ("--network", "host"),
        ("--network=container:x",),
        ("--cidfile", "/tmp/x"),
        ("--volumes-from", "x"),
        ("--ip", "10.0.0.2"),
    ],
)
def test_what_two_containers_would_share(words):
    assert not cautions.shares_nothing(docker("run", *words, "image"))


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("-P",),
        ("-p", "80"),
        ("-p", "127.0.0.1::80"),
        ("-v", "/data"),
        ("-v", "/srv:/srv:ro"),
        ("--mount", "type=bind,src=/srv,dst=/srv,readonly"),
        ("--mount", "type=tmpfs,dst=/t"),
        ("--mount", "type=volume,dst=/data"),
        ("--tmpfs", "/t"),
        ("--network", "none"),
    ],
)
def test_what_two_containers_have_apart(words):
    assert cautions.shares_nothing(docker("run", *words, "image"))


def test_recipe_becomes_flags_in_a_fixed_order():
    recipe = frozenset(
        {
            Sysctl("net.ipv4.ip_forward", "1"),
            SecurityOption("apparmor=unconfined"),
            Syscalls(("keyctl",)),
            DeviceClass("b", 7, None, "rw", ("/dev/loop0",)),
            DeviceClass("c", -1),
            Device("/dev/loop0", "m"),
            Device("/dev/fuse", "rw"),
            Capability("SYS_ADMIN"),
            Capability("CHOWN"),
        }
    )
    assert flags_of(recipe, "/x/profile.json") == (
        *("--cap-drop", "ALL", "--cap-add", "CHOWN", "--cap-add", "SYS_ADMIN"),
        *("--device", "/dev/fuse:/dev/fuse:rw", "--device", "/dev/loop0:/dev/loop0:rwm"),
        *("--device-cgroup-rule", "c *:* rwm"),  # the pool's nodes are allowed by their --device
        *("--security-opt", "apparmor=unconfined", "--security-opt", "seccomp=/x/profile.json"),
        *("--sysctl", "net.ipv4.ip_forward=1"),
    )
    assert flags_of(frozenset()) == ("--cap-drop", "ALL")


def test_calls_need_a_profile_unless_seccomp_is_off():
    with pytest.raises(ValueError, match="profile"):
        flags_of(frozenset({Syscalls(("keyctl",))}))
    with pytest.raises(ValueError, match="profile"):
        flags_of(frozenset({AllowList(("read",))}))
    narrowed = flags_of(frozenset({AllowList(("read",))}), "a.json")
    assert narrowed == ("--cap-drop", "ALL", "--security-opt", "seccomp=a.json")
    both = frozenset({Syscalls(("keyctl",)), SecurityOption("seccomp=unconfined")})
    assert flags_of(both) == ("--cap-drop", "ALL", "--security-opt", "seccomp=unconfined")


def test_parser_talks_to_no_engine():
    code = "import sys, profiler.harness.docker.cautions; sys.exit('docker' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
