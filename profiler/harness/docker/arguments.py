"""Reads the user's `docker run` command line. Knows its grammar, talks to nobody.

The grammar is that of the docker client's flag library (pflag): flags end at the image, `--flag value` and
`--flag=value` are the same, a boolean takes a value only after `=`, short flags cluster (`-itd`, `-eFOO=1`, `-p80:80`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NoReturn

from profiler.errors import HostError, UsageError


@dataclass(frozen=True)
class Grammar:
    """The flags of one docker command: those with a value, those without, and the long names of the short ones."""

    command: str
    boolean: frozenset[str]
    valued: frozenset[str]
    short: dict[str, str]
    aliases: dict[str, str]


# docs/reference/commandline/container_run.md, docker CLI up to 28.x, with what it keeps for old scripts and Windows
_RUN_BOOLEAN = """
    detach disable-content-trust help init interactive no-healthcheck oom-kill-disable privileged publish-all quiet
    read-only rm sig-proxy tty use-api-socket
"""
_RUN_VALUED = """
    add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile
    cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares cpus cpuset-cpus cpuset-mems
    detach-keys device device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops dns
    dns-option dns-search domainname entrypoint env env-file expose gpus group-add health-cmd health-interval
    health-retries health-start-interval health-start-period health-timeout hostname io-maxbandwidth io-maxiops ip
    ip6 ipc isolation kernel-memory label label-file link link-local-ip log-driver log-opt mac-address memory
    memory-reservation memory-swap memory-swappiness mount name network network-alias oom-score-adj pid pids-limit
    platform publish pull restart runtime security-opt shm-size stop-signal stop-timeout storage-opt sysctl tmpfs
    ulimit user userns uts volume volume-driver volumes-from workdir
"""
RUN = Grammar(
    command="docker run",
    boolean=frozenset(_RUN_BOOLEAN.split()),
    valued=frozenset(_RUN_VALUED.split()),
    short={
        "a": "attach",
        "c": "cpu-shares",
        "d": "detach",
        "e": "env",
        "h": "hostname",
        "i": "interactive",
        "l": "label",
        "m": "memory",
        "p": "publish",
        "P": "publish-all",
        "q": "quiet",
        "t": "tty",
        "u": "user",
        "v": "volume",
        "w": "workdir",
    },
    aliases={"dns-opt": "dns-option", "net": "network", "net-alias": "network-alias"},
)
CLIENT = Grammar(  # docs/reference/commandline/docker.md
    command="docker",
    boolean=frozenset({"debug", "help", "tls", "tlsverify", "version"}),
    valued=frozenset({"config", "context", "host", "log-level", "tlscacert", "tlscert", "tlskey"}),
    short={"c": "context", "D": "debug", "H": "host", "l": "log-level", "v": "version"},
    aliases={},
)

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})  # Go's strconv.ParseBool
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_WRAPPERS = frozenset({"sudo", "doas", "env", "nice", "ionice", "nohup", "setsid", "time", "timeout"})
_SHAPE = "write it as: docker run [flags] IMAGE [command…]"
# Clients whose `run` starts a container elsewhere than below Docker's engine. Their other words (a build) are programs
# like any other: these run in the embedded sandbox.
_OTHER_ENGINES = frozenset({"podman", "nerdctl"})
_INSTEAD = {
    "build": "profile a step of it by itself: docker run IMAGE and the step's command",
    "buildx": "profile a step of it by itself: docker run IMAGE and the step's command",
    "compose": "write the service as a docker run; docker compose config tells its image, volumes and variables",
    "exec": "profile the container from its start, by the docker run that starts it",
    "start": "profile the container from its start, by the docker run that starts it",
    "create": "write run for create: what runs is profiled",
}


@dataclass(frozen=True)
class Flag:
    """One flag as given: its long name, its value (`true` or `false` for a boolean), and how it was written.

    `cluster` tells which command-line word a short flag came from, so that `-it` is rendered as it was.
    """

    name: str
    value: str
    tokens: tuple[str, ...]
    cluster: int = -1


@dataclass(frozen=True)
class DockerRun:
    """A `docker run` command line: `verb` is `("run",)` or `("container", "run")`."""

    binary: str
    global_flags: tuple[Flag, ...]
    flags: tuple[Flag, ...]
    image: str
    command: tuple[str, ...]
    verb: tuple[str, ...] = ("run",)

    def values(self, name: str) -> tuple[str, ...]:
        """Every value given for the flag with this long name, in order."""
        return tuple(flag.value for flag in self.flags if flag.name == name)

    def value(self, name: str) -> str | None:
        """The value that counts: the last one given. None when it was not given."""
        values = self.values(name)
        return values[-1] if values else None

    def is_set(self, name: str) -> bool:
        """Whether a boolean flag is on."""
        return self.value(name) in _TRUE

    def where(self, keep: Callable[[Flag], bool]) -> DockerRun:
        """The same command with only those of its run flags that `keep` answers True for."""
        return DockerRun(
            self.binary, self.global_flags, tuple(filter(keep, self.flags)), self.image, self.command, self.verb
        )

    def without(self, names: Container[str]) -> DockerRun:
        """The same command without the flags of these long names."""
        return self.where(lambda flag: flag.name not in names)

    def rendered(self, extra: Iterable[str] = ()) -> tuple[str, ...]:
        """The whole command line, with the words `extra` after the user's own flags."""
        # A "--" is needed only before an image that would be read as a flag, and no image name begins with a dash.
        return (*self.prefix(), *self.verb, *flag_words(self.flags), *extra, self.image, *self.command)

    def prefix(self) -> tuple[str, ...]:
        """The client and its global flags: what any other docker command for the same engine begins with."""
        return (self.binary, *flag_words(self.global_flags))


def flag_words(flags: Iterable[Flag]) -> tuple[str, ...]:
    """The words of these flags; short flags that stood in one word stand in one word again."""
    words: list[str] = []
    previous = -1
    for flag in flags:
        if flag.cluster >= 0 and flag.cluster == previous:
            words[-1] += flag.tokens[0][1:]
            words.extend(flag.tokens[1:])
        else:
            words.extend(flag.tokens)
        previous = flag.cluster
    return tuple(words)


def names_engine(argv: tuple[str, ...]) -> bool:
    """Whether the command is a container client's, by path or by name: docker's, or the `run` of another engine's."""
    name = PurePosixPath(argv[0]).name if argv else ""
    return name == "docker" or (name in _OTHER_ENGINES and argv[1:2] in (("run",), ("container",)))


def behind_wrapper(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The `docker run …` that a program such as sudo is asked to execute; empty for any other command."""
    if not argv or PurePosixPath(argv[0]).name not in _WRAPPERS:
        return ()
    for at in range(1, len(argv)):
        if names_engine(argv[at:]):
            return argv[at:] if "run" in argv[at + 1 :] else ()
    return ()


def parse(argv: tuple[str, ...]) -> DockerRun:
    """Read `docker [global flags] [container] run [flags] IMAGE [command…]`.

    Raises UsageError for what the docker client would not take either (an unknown flag, a missing value, no image), for
    another subcommand than `run`, and HostError for another engine's client.
    """
    if not names_engine(argv):
        raise UsageError(f"not a docker command: {argv[0] if argv else '(nothing)'}", _SHAPE)
    client = PurePosixPath(argv[0]).name
    if client in _OTHER_ENGINES:
        raise HostError(f"{client} is not supported, only docker", "run the same image with docker on this host")
    global_flags, at = _read_flags(argv, 1, CLIENT)
    verb = argv[at : at + 2] if argv[at : at + 1] == ("container",) else argv[at : at + 1]
    if verb not in (("run",), ("container", "run")):
        said = " ".join(("docker", *verb))
        raise UsageError(f"only `docker run` can be profiled, not `{said}`", _INSTEAD.get("".join(verb), _SHAPE))
    flags, at = _read_flags(argv, at + len(verb), RUN)
    if at >= len(argv) or not argv[at]:
        raise UsageError("no image is named", _SHAPE)
    return DockerRun(argv[0], global_flags, flags, argv[at], argv[at + 1 :], verb)


def _read_flags(argv: tuple[str, ...], at: int, grammar: Grammar) -> tuple[tuple[Flag, ...], int]:
    """The flags from word `at` on, and the index of the first word that is none."""
    flags: list[Flag] = []
    while at < len(argv):
        word = argv[at]
        if word == "--":
            return tuple(flags), at + 1
        if not word.startswith("-") or word == "-":
            break
        if word.startswith("--"):
            flag, at = _read_long(argv, at, grammar)
            flags.append(flag)
        else:
            cluster, at = _read_cluster(argv, at, grammar)
            flags.extend(cluster)
        at += 1
    return tuple(flags), at


def _read_long(argv: tuple[str, ...], at: int, grammar: Grammar) -> tuple[Flag, int]:
    """The long flag at `at`, and the index of the last word that it took."""
    word = argv[at]
    given, equals, value = word[2:].partition("=")
    name = grammar.aliases.get(given, given)
    if name in grammar.boolean:
        return Flag(name, _boolean(f"--{given}", value if equals else "true"), (word,)), at
    if name not in grammar.valued:
        _unknown(f"--{given}", given, grammar)
    if equals:
        return Flag(name, value, (word,)), at
    value = _following(argv, at + 1, word)
    return Flag(name, value, (word, value)), at + 1


def _read_cluster(argv: tuple[str, ...], at: int, grammar: Grammar) -> tuple[list[Flag], int]:
    """The short flags of the word at `at`, and the index of the last word that they took."""
    flags: list[Flag] = []
    rest = argv[at][1:]
    cluster = at
    while rest:
        letter, rest = rest[0], rest[1:]
        name = grammar.short.get(letter)
        if name is None:
            _unknown(f"-{letter}", letter, grammar)
        if rest.startswith("="):
            value = _boolean(f"-{letter}", rest[1:]) if name in grammar.boolean else rest[1:]
            tokens: tuple[str, ...] = (f"-{letter}{rest}",)
            rest = ""
        elif name in grammar.boolean:
            value, tokens = "true", (f"-{letter}",)
        elif rest:
            value, tokens, rest = rest, (f"-{letter}{rest}",), ""
        else:
            at += 1
            value = _following(argv, at, f"-{letter}")
            tokens = (f"-{letter}", value)
        flags.append(Flag(name, value, tokens, cluster))
    return flags, at


def _boolean(flag: str, value: str) -> str:
    if value not in _TRUE | _FALSE:
        raise UsageError(f"{flag} takes true or false, not {value!r}", f"write {flag} or {flag}=false")
    return value


def _following(argv: tuple[str, ...], at: int, flag: str) -> str:
    if at >= len(argv):
        raise UsageError(f"{flag} needs a value", _SHAPE)
    return argv[at]


def _unknown(flag: str, name: str, grammar: Grammar) -> NoReturn:
    known = sorted(grammar.boolean | grammar.valued | set(grammar.aliases))
    near = difflib.get_close_matches(name, known, n=1) if len(name) > 1 else []
    guess = f"did you mean --{near[0]}? " if near else ""
    raise UsageError(f"`{grammar.command}` has no flag {flag}", f"{guess}`{grammar.command} --help` lists its flags")
