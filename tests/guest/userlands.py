"""Carries the test images' userlands into the guest, which has no network to build them from.

`sources SUITE` prints this machine's own apt sources for SUITE; `tags SUITE [NAME…]` prints what the
userlands (all unless named) are tagged on a machine of SUITE; `pack SUITE DIRECTORY [NAME…]` writes one archive a
userland there, where it is missing, and prints the archives (host, root); `import DIRECTORY` imports these under the
tags that `images` looks for, so that every test finds its image already built (the guest's own Docker engine, root).
Failures are `images.ImageError`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import images

Pack = Callable[[Path], None]
USERLANDS = tuple(name for name in images.BASES if name != "busybox")  # busybox is packed from what runs in the guest


def sources(suite: str) -> str:
    """This machine's apt sources for another suite of the same distribution, as one-line entries."""
    return images.host_sources().replace(f" {images.host_suite()}", f" {suite}")


def userlands(suite: str, names: Sequence[str] = USERLANDS) -> dict[str, Pack]:
    """The tag of each of these userlands on a machine of `suite`, and what writes its archive to a given path."""
    found: dict[str, Pack] = {}
    of_suite = sources(suite)

    def note(tag: str, build: Callable[[], None]) -> str:
        images._import = found.__setitem__  # what `build` ends with: the tag, and what packs its root
        build()
        return tag

    own = {name: getattr(images, name) for name in ("host_suite", "host_sources", "_built_once", "_import")}
    images.host_suite, images.host_sources, images._built_once = lambda: suite, lambda: of_suite, note
    try:
        for name in names:
            images.BASES[name]()
    finally:
        for name, function in own.items():
            setattr(images, name, function)
    return found


def archive_name(tag: str) -> str:
    """The file that holds the userland of this tag: `tools-0123456789ab.tar`."""
    return tag.rpartition("/")[2].replace(":", "-") + ".tar"


def pack(suite: str, directory: Path, names: Sequence[str]) -> None:
    """Write what is missing of these userlands' archives to `directory`."""
    for tag, write in userlands(suite, names).items():
        archive = directory / archive_name(tag)
        if not archive.exists():
            partial = directory / f".{archive.name}"  # the suffix tells mmdebstrap what to write
            write(partial)
            partial.rename(archive)
        print(archive, flush=True)


def import_archives(directory: Path) -> None:
    """Import each archive of `directory` under its tag."""
    for archive in sorted(directory.glob("*.tar")):
        name, _, digest = archive.stem.rpartition("-")
        tag = f"{images.REPOSITORY}/{name}:{digest}"
        subprocess.run(["docker", "import", "--change", 'CMD ["/bin/sh"]', archive, tag], check=True)
        print(tag, flush=True)


def main(arguments: list[str]) -> None:
    """See the module's first lines."""
    match arguments:
        case ["sources", suite]:
            print(sources(suite), end="")
        case ["tags", suite, *names]:
            print("\n".join(userlands(suite, names or USERLANDS)))
        case ["pack", suite, directory, *names]:
            pack(suite, Path(directory), names or USERLANDS)
        case ["import", directory]:
            import_archives(Path(directory))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
