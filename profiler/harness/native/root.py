"""The embedded sandbox's file system: the host's, below private layers that vanish with the run.

Everything here runs in the mount namespace of the sandbox's init, before it gives up the host's root. Sources:
Documentation/filesystems/overlayfs.rst, mount_namespaces(7), pivot_root(2), namespaces(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from profiler.kernel.mountinfo import Mount, below
from profiler.kernel.namespaces import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
    mount_flags,
    pivot_root,
    umount2,
)

# redirect_dir: renaming a host directory works as on the host, instead of EXDEV. volatile (Linux 5.10): no fsync(2)
# of a layer that is thrown away anyway, which halves the time of a package installation. Without both it works too.
_OVERLAY_OPTIONS = ("redirect_dir=on,volatile", "redirect_dir=on", "")
_SMALL_FILE = 1 << 20  # bytes; a mounted file up to this size gets a private copy


def make_private() -> None:
    """Keep what is mounted from now on to this mount namespace. A shared root would also forbid pivot_root(2)."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)


def build(layers: Iterable[Mount], stores: Iterable[str], hidden: Iterable[str]) -> tuple[Path, tuple[str, ...]]:
    """Mount the new root with all `layers` (the host's root first) and return it with one-line notes.

    The first of `stores` that overlayfs takes for its upper layers holds what the sandbox writes; when it takes none
    (all are on overlayfs themselves, or the kernel, before 5.12, wants no upper below its lower), a tmpfs of this mount
    namespace does, and what is written counts as memory. `hidden` paths do not exist in the sandbox. Raises OSError
    where there is no overlayfs.
    """
    root, *others = layers
    hidden = tuple(hidden)
    notes: list[str] = []
    store = new_root = None
    for candidate in stores:
        store = Path(candidate)
        try:
            new_root = _add_layer(root, 0, store, None, hidden)
            break
        except OSError:
            continue
    if new_root is None:
        assert store is not None, "a run has at least one store"
        mount("tmpfs", store, "tmpfs", MS_NOSUID | MS_NODEV, "mode=700")
        new_root = _add_layer(root, 0, store, None, hidden)
        notes.append("no disk can hold what the sandbox writes: it is kept in memory")
    assert store is not None
    for index, layer in enumerate(others, 1):
        try:
            if stat.S_ISDIR(os.lstat(layer.point).st_mode):
                _add_layer(layer, index, store, new_root, hidden)
            else:
                _add_file(layer, index, store, new_root)
        except OSError as error:
            notes.append(f"{layer.point} ({layer.fstype}) is not in the sandbox: {error.strerror}")
            _bind_read_only(layer, new_root)
    return new_root, tuple(notes)


def _add_layer(layer: Mount, index: int, store: Path, new_root: Path | None, hidden: tuple[str, ...]) -> Path:
    """Mount an overlay of the mount `layer`: at its place in `new_root`, or (None) as the new root itself."""
    home = store / str(index)
    upper, work, target = home / "upper", home / "work", home / "root"
    for directory in (home, upper, work):
        directory.mkdir()
    _copy_attributes(Path(layer.point), upper)  # the merged directory's attributes are those of the upper one
    for path in hidden:
        if below(path, layer.point) and path != layer.point:
            _white_out(layer.point, path, upper)
    if new_root is None:
        target.mkdir()
    else:
        target = new_root / layer.point.lstrip("/")
    flags = mount_flags(layer.options)
    where = f"lowerdir={_escape(layer.point)},upperdir={_escape(str(upper))},workdir={_escape(str(work))}"
    for number, options in enumerate(_OVERLAY_OPTIONS, 1):
        try:
            mount("overlay", target, "overlay", flags, f"{where},{options}".rstrip(","))
            break
        except OSError as error:
            if error.errno != errno.EINVAL or number == len(_OVERLAY_OPTIONS):
                raise
    return target


def _escape(path: str) -> str:
    r"""A path as overlayfs reads it from its options: `\`, `:` and `,` are its own (ovl_next_opt)."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _copy_attributes(source: Path, target: Path) -> None:
    """Owner, mode, extended attributes (access control lists, labels) and times."""
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            with contextlib.suppress(OSError):  # another file system may not take it
                os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _white_out(point: str, path: str, upper: Path) -> None:
    """Put a whiteout (a character device 0:0) for `path` into `upper`, the upper layer of the mount at `point`."""
    lower = Path(path)
    if not lower.exists() or lower.resolve() != lower:
        return
    relative = lower.relative_to(point)
    for parent in reversed(relative.parents[:-1]):
        copy = upper / parent
        if not copy.exists():
            copy.mkdir()
            _copy_attributes(Path(point) / parent, copy)
    os.mknod(upper / relative, stat.S_IFCHR, os.makedev(0, 0))


def _add_file(layer: Mount, index: int, store: Path, new_root: Path) -> None:
    """A mounted file (a container's /etc/hosts): overlayfs takes directories only, so a private copy is mounted."""
    source, copy = Path(layer.point), store / str(index)
    status = source.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _SMALL_FILE:
        raise OSError(errno.EFBIG, "a large or special file is mounted there")
    copy.write_bytes(source.read_bytes())
    _copy_attributes(source, copy)
    mount(copy, new_root / layer.point.lstrip("/"), None, MS_BIND)


def _bind_read_only(layer: Mount, new_root: Path) -> None:
    """What overlayfs refuses as a lower layer (vfat, for its names without case) is there to read, if that works."""
    target = new_root / layer.point.lstrip("/")
    with contextlib.suppress(OSError):
        mount(layer.point, target, None, MS_BIND)
        read_only(target)


def read_only(target: Path) -> None:
    """Make the mount at `target` read-only, not its file system, keeping its other flags (else they would be lost)."""
    flags = os.statvfs(target).f_flag  # ST_NOSUID, ST_NODEV and ST_NOEXEC have the values of MS_*
    kept = flags & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def enter(new_root: Path, cwd: str) -> None:
    """Make `new_root` this namespace's root, let go of the host's, and go to `cwd`, a path in it.

    The old root is stacked on the new one and detached, so that no directory is needed for it (pivot_root(2), NOTES).
    """
    os.chdir(new_root)
    pivot_root(".", ".")
    umount2(".", MNT_DETACH)
    os.chdir(cwd)
