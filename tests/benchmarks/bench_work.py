"""The work that is measured: each prepares its input in a directory of the host and is a command for the sandbox.

Everything is generated, but for the packages: those are of the machine's own distribution. Sizes are parameters, so
that the tests can do the same work in small.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Packages that every Debian or Ubuntu system has: they are downloaded and installed over themselves.
PACKAGES = ("tzdata", "coreutils", "perl-base", "dpkg", "login")
HEADERS = ("stdio.h", "stdlib.h", "string.h", "unistd.h", "errno.h", "fcntl.h", "signal.h", "sys/socket.h", "time.h")
PER_DIRECTORY = 200
BIG = 1 << 20  # a user id beyond 16 bits


@dataclass(frozen=True)
class Size:
    """How much of each work: C files, packages, files to unpack, programs to start."""

    sources: int = 60
    packages: int = len(PACKAGES)
    files: int = 20_000
    forks: int = 20_000
    calls: int = 20_000


def scaled(divisor: int) -> Size:
    """The full size divided by `divisor`, at least one of each."""
    whole = Size()
    parts = (whole.sources, whole.packages, whole.files, whole.forks, whole.calls)
    return Size(*(max(1, part // divisor) for part in parts))


SMALL = Size(sources=2, packages=1, files=150, forks=100, calls=200)


@dataclass(frozen=True)
class Work:
    """`prepare` makes the input below a directory and returns the command, which writes below `OUT` only."""

    name: str
    prepare: Callable[[Path, Size], tuple[str, ...]]
    needs: tuple[str, ...] = ()

    def missing(self) -> str:
        """The first program that it needs and this machine does not have; empty when it can be done."""
        return next((program for program in self.needs if shutil.which(program) is None), "")


def _compile(place: Path, size: Size) -> tuple[str, ...]:
    names = [f"part{number}" for number in range(size.sources)]
    for number, name in enumerate(names):
        includes = "".join(f"#include <{header}>\n" for header in HEADERS)
        functions = "".join(
            f"int {name}_{i}(int a, const char *s) {{ int r = a * {i + number};\n"
            f"  for (int j = 0; j < a; j++) r += (int)strlen(s) ^ j; return r % {i + 7}; }}\n"
            for i in range(60)
        )
        (place / f"{name}.c").write_text(includes + functions)
    calls = "".join(f"int {name}_1(int, const char *);\n" for name in names)
    uses = " + ".join(f'{name}_1(3, "{name}")' for name in names)
    (place / "main.c").write_text(f"#include <stdio.h>\n{calls}int main(void) {{ return {uses} < 0; }}\n")
    objects = " ".join(f"{name}.o" for name in (*names, "main"))
    (place / "Makefile").write_text(f"all: {objects}\n\tcc -o program {objects}\n%.o: %.c\n\tcc -O1 -c -o $@ $<\n")
    return ("make", "-s", "-j2", "-C", str(place))


def _install(place: Path, size: Size) -> tuple[str, ...]:
    subprocess.run(
        ("apt-get", "-qq", "download", *PACKAGES[: size.packages]), cwd=place, check=True, capture_output=True
    )
    # unsafe-io as image builds have it: otherwise the disk's flushes are all that is measured
    script = f"dpkg --force-all --force-unsafe-io -i {place}/*.deb"
    return ("sh", "-c", script)


def _archive(path: Path, files: int, owner: Callable[[int], int]) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(files):
            directory, at = divmod(number, PER_DIRECTORY)
            if at == 0:
                member = tarfile.TarInfo(f"tree/d{directory}")
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            member = tarfile.TarInfo(f"tree/d{directory}/f{at}")
            member.size, member.mode = 128, 0o644
            member.uid = member.gid = owner(number)
            archive.addfile(member, io.BytesIO(b"x" * 128))


def _unpack(owner: Callable[[int], int]) -> Callable[[Path, Size], tuple[str, ...]]:
    def prepare(place: Path, size: Size) -> tuple[str, ...]:
        _archive(place / "files.tar", size.files, owner)
        (place / "out").mkdir()
        return ("tar", "-C", str(place / "out"), "-xpf", str(place / "files.tar"), "--numeric-owner")

    return prepare


def _fork(_: Path, size: Size) -> tuple[str, ...]:
    return ("sh", "-c", f"i=0; while [ $i -lt {size.forks} ]; do /bin/true; i=$((i+1)); done")


def _chown(place: Path, size: Size) -> tuple[str, ...]:
    (place / "file").touch()
    loop = f"import os\nfor i in range({size.calls}): os.chown({str(place / 'file')!r}, {BIG} + i % 8, 7)"
    return (sys.executable, "-I", "-S", "-c", loop)


WORKS = (
    Work("compile (make -j2)", _compile, ("make", "cc")),
    Work("install packages (dpkg -i)", _install, ("apt-get", "dpkg")),
    Work("unpack, all root's (tar)", _unpack(lambda number: 0), ("tar",)),
    Work("unpack, mixed owners (tar)", _unpack(lambda number: (0, 1000, BIG + number % 50)[number % 3]), ("tar",)),
    Work("start programs (/bin/true)", _fork, ("sh",)),
    Work("privileged calls only (chown)", _chown),
)
