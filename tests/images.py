"""Builds the images that tests and samples run in, without a registry: from this machine's own packages.

`busybox()` is a static busybox on an empty root; `tools()` and `builders()` are userlands of this machine's own Debian
or Ubuntu suite, made by mmdebstrap from its own apt sources; `sample(directory)` is one of these and a sample's script.
An image's tag is a hash of all that it is made of, so that it is built once and shared by every test and session. The
images stay in the engine; `make clean` removes them.

Needs root, a Docker engine, busybox-static and mmdebstrap. Failures raise `ImageError` with the tool's last lines.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = "capprofile-test"
SAMPLES = Path(__file__).resolve().parent.parent / "sample_workloads"
RECIPE_VERSION = "1"  # goes into every hash: raise it when the way of building changes

TOOLS = (
    "bindfs", "busybox-static", "dpkg-dev", "e2fsprogs", "fuse3", "iproute2", "iputils-ping", "kmod", "libcap2-bin",
    "mount", "nginx-light", "openssh-client", "openssh-server", "procps", "strace", "sudo", "tcpdump", "uidmap",
    "util-linux",
)  # fmt: skip
BUILDERS = ("buildah", "busybox-static", "docker.io", "gcc", "iptables", "libc6-dev", "make", "mount", "procps")
# What newer suites have in a package of its own (Debian 13): installed with the other where there is such a package.
SPLIT_OFF = {"docker.io": "?exact-name(docker-cli)"}

DIRECTORIES = "bin sbin usr usr/bin usr/sbin etc root mnt proc sys dev tmp"
ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}
# What a userland does not need in order to run: smaller archives to pack, import and copy.
UNNEEDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# What only this machine's way to its packages needs, and package lists: removed again before the image is packed.
MACHINES_OWN = (
    "etc/apt/sources.list*", "etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "var/lib/apt/lists/*", "var/cache/apt/*.bin",
)  # fmt: skip


class ImageError(RuntimeError):
    """An image could not be built: the message names the command and its last lines."""


def busybox() -> str:
    """The tag of an image that holds Debian's static busybox with a link for each applet, /etc/passwd and /tmp."""
    program = _static_busybox()
    tag = _tag("busybox", program.read_bytes(), *map(str.encode, ACCOUNTS.values()))
    return _built_once(tag, lambda: _import(tag, functools.partial(_pack_busybox, program)))


def tools() -> str:
    """The tag of the userland with the programs that administrators use: mount, ping, tcpdump, nginx, sshd, sudo, …"""
    return userland("tools", TOOLS)


def builders() -> str:
    """The tag of the userland with what builds: gcc, make, buildah, dockerd."""
    return userland("builders", BUILDERS)


def userland(name: str, packages: tuple[str, ...], hooks: tuple[str, ...] = ()) -> str:
    """The tag of an image of this machine's own suite with `packages` installed, without recommended ones.

    `hooks` are shell commands that finish the tree, which each finds in its first argument (mmdebstrap's customize
    hooks); apt of this machine still reaches the suite's packages there by way of MMDEBSTRAP_APT_CONFIG.
    """
    suite = host_suite()
    packages += tuple(SPLIT_OFF[name] for name in packages if name in SPLIT_OFF)
    tag = _tag(name, suite.encode(), *map(str.encode, (*packages, *hooks)))
    return _built_once(tag, lambda: _import(tag, functools.partial(_bootstrap, suite, host_sources, packages, hooks)))


def sample(directory: Path) -> str:
    """The tag of a sample's image: its base, its script as /workload, and what its image.sh (if any) prepares.

    `directory` is one of `sample_workloads/`; its workload.toml names the base by the function here.
    """
    settings = tomllib.loads((directory / "workload.toml").read_text(encoding="utf-8"))
    files = {"workload": (directory / "workload.sh").read_bytes()}
    steps = f"FROM {BASES[settings['image']]()}\nCOPY workload /workload\n"
    if (directory / "image.sh").exists():
        files["image.sh"] = (directory / "image.sh").read_bytes()
        steps += "COPY image.sh /image.sh\nRUN /image.sh && rm /image.sh\n"
    steps += 'CMD ["/workload"]\n'
    tag = _tag(f"sample-{directory.name}", steps.encode(), *files.values())
    return _built_once(tag, lambda: _build(tag, {"Dockerfile": steps.encode(), **files}))


def derived(name: str, base: str, lines: list[str]) -> str:
    """The tag of an image that is `base` and some lines of a Dockerfile."""
    steps = "\n".join([f"FROM {base}", *lines]) + "\n"
    tag = _tag(name, steps.encode())
    return _built_once(tag, lambda: _build(tag, {"Dockerfile": steps.encode()}))


def remove_all() -> None:
    """Remove every image of ours from the engine (not those that a container still uses)."""
    tags = _run(["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{REPOSITORY}/*"]).decode().split()
    for tag in tags:
        subprocess.run(["docker", "image", "rm", tag], check=False, capture_output=True)


def host_suite() -> str:
    """The code name of this machine's own release (os-release(5) VERSION_CODENAME): `bookworm`, `noble`."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if not codename:
        raise ImageError("this machine's os-release names no VERSION_CODENAME: only Debian and Ubuntu can build images")
    return codename


def host_sources(etc_apt: Path = Path("/etc/apt")) -> str:
    """This machine's own apt sources (sources.list(5), both formats) that are of its own suite, as one-line entries."""
    files = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    entries: list[str] = []
    for file in files:
        if file.suffix == ".sources":
            entries += one_line_entries(file.read_text(), host_suite())
        elif file.suffix == ".list" and file.exists():
            entries += [line for line in file.read_text().splitlines() if _is_of_suite(line, host_suite())]
    if not entries:
        raise ImageError(f"no apt source below {etc_apt} is of the suite {host_suite()}")
    return "\n".join(entries) + "\n"


def one_line_entries(deb822: str, suite: str) -> list[str]:
    """The binary sources of a deb822 file that are of `suite` or its -updates and -security, as one-line entries.

    An inline key (Signed-By with a key block) cannot be spelled in one line: such sources are left out.
    """
    entries = []
    for stanza in re.split(r"\n\s*\n", deb822):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')} {line.strip()}"
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        signed_by = fields.get("signed-by", "")
        if "BEGIN PGP" in signed_by:
            continue
        options = f"[signed-by={','.join(signed_by.split())}] " if signed_by else ""
        entries += [
            f"deb {options}{uri} {name} {' '.join(fields.get('components', '').split())}".rstrip()
            for uri in fields.get("uris", "").split()
            for name in fields.get("suites", "").split()
            if _belongs(name, suite)
        ]
    return entries


def _belongs(name: str, suite: str) -> bool:
    return name in (suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates")


def _is_of_suite(line: str, suite: str) -> bool:
    words = re.sub(r"\[[^\]]*\]", "", line).split()
    return len(words) > 2 and words[0] == "deb" and _belongs(words[2], suite)


def _static_busybox() -> Path:
    program = Path("/bin/busybox")
    if not program.exists():
        raise ImageError("/bin/busybox is missing: apt-get install busybox-static")
    return program


def _pack_busybox(program: Path, archive: Path) -> None:
    applets = _run([str(program), "--list-full"]).decode().split()
    with tarfile.open(archive, "w") as tar:
        for directory in DIRECTORIES.split():
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        for name, content in ACCOUNTS.items():
            _add(tar, name, content.encode(), 0o644)
        _add(tar, "bin/busybox", program.read_bytes(), 0o755)
        for applet in applets:
            if applet != "bin/busybox":
                entry = tarfile.TarInfo(applet)
                entry.type, entry.linkname = tarfile.SYMTYPE, "/bin/busybox"
                tar.addfile(entry)


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _bootstrap(
    suite: str, sources: Callable[[], str], packages: tuple[str, ...], hooks: tuple[str, ...], archive: Path
) -> None:
    # `sources` are asked for no sooner than here: who has the image needs none.
    # APT's own way to its sources (proxies, certificates) is the machine's affair: handed on as it is, and removed from
    # the image afterwards together with the sources.
    acquire = [line for line in _run(["apt-config", "dump", "Acquire"]).decode().splitlines() if '""' not in line]
    command = [
        "mmdebstrap", "--mode=root", "--variant=apt", "--format=tar", f"--include={','.join(packages)}",
        *(f"--aptopt={line}" for line in acquire if re.search(r"::(Proxy|CaInfo|Verify-)", line)),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in UNNEEDED),
        "--dpkgopt=force-unsafe-io",
        *(f"--customize-hook={hook}" for hook in hooks),
        "--customize-hook=cd \"$1\" && rm -rf " + " ".join(MACHINES_OWN),
        suite, str(archive), "-",
    ]  # fmt: skip
    _run(command, stdin=sources().encode())


def _import(tag: str, pack: Callable[[Path], None]) -> None:
    """Import as `tag` the archive that `pack` writes to the path that it is given."""
    with tempfile.TemporaryDirectory(prefix="capprofile-image-") as directory:
        archive = Path(directory) / "root.tar"
        pack(archive)
        _run(["docker", "import", "--change", 'CMD ["/bin/sh"]', str(archive), tag])


def _build(tag: str, files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory(prefix="capprofile-image-") as context:
        for name, content in files.items():
            path = Path(context) / name
            path.write_bytes(content)
            path.chmod(0o644 if name == "Dockerfile" else 0o755)
        # The classic builder needs no plugin and no network.
        _run(["docker", "build", "--quiet", "--network=none", "--tag", tag, context], env={"DOCKER_BUILDKIT": "0"})


def _built_once(tag: str, build: Callable[[], None]) -> str:
    if not _exists(tag):
        with _lock():
            if not _exists(tag):  # another session may have built it while we waited
                build()
    return tag


def _exists(tag: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", tag], check=False, capture_output=True).returncode == 0


@contextmanager
def _lock() -> Iterator[None]:
    """One builder at a time on this machine: a lock on a directory that every clone of the project shares."""
    descriptor = os.open("/var/lib/docker" if Path("/var/lib/docker").is_dir() else "/tmp", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _tag(name: str, *parts: bytes) -> str:
    digest = hashlib.sha256(RECIPE_VERSION.encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return f"{REPOSITORY}/{name}:{digest.hexdigest()[:12]}"


def _run(command: list[str], stdin: bytes = b"", env: dict[str, str] | None = None) -> bytes:
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, check=False, env={**os.environ, **(env or {})}, timeout=900
        )
    except FileNotFoundError as missing:
        raise ImageError(f"{command[0]} is missing: make test installs what the tests need") from missing
    if done.returncode != 0:
        last = "\n".join(done.stderr.decode(errors="replace").splitlines()[-15:])
        raise ImageError(f"{command[0]} failed with {done.returncode}:\n{last}")
    return done.stdout


BASES: dict[str, Callable[[], str]] = {"busybox": busybox, "tools": tools, "builders": builders}


def main(arguments: list[str]) -> None:
    """`python tests/images.py NAME…` builds and prints the tags of base images or samples; `--remove` removes all."""
    if arguments == ["--remove"]:
        remove_all()
        return
    for name in arguments or [*BASES, *(path.parent.name for path in sorted(SAMPLES.glob("*/workload.toml")))]:
        print(BASES[name]() if name in BASES else sample(SAMPLES / name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
