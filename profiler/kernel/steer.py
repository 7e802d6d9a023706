"""Steers a process from the gate into its workload: it installs the filter, takes a user's ids, executes the workload.

How the process is attached, stopped and let go is `tracee`'s matter; what is executed, and when, is decided above.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from profiler.errors import HostError, WorkloadError
from profiler.kernel import memory, namespaces
from profiler.kernel.capabilities import CAPSET_DATA, NUMBER, capset_arguments, mask, sets_of
from profiler.kernel.mountinfo import Mount
from profiler.kernel.tracee import Tracee, TraceeEndedError

__all__ = ["Credentials", "ExecutionError", "Steered", "TraceeEndedError"]

# asm/unistd_64.h
NR_CLOSE = 3
NR_FSTAT = 5
NR_MMAP = 9
NR_EXECVE = 59
NR_FCHOWN = 93
NR_SETUID = 105
NR_SETGID = 106
NR_SETGROUPS = 116
NR_CAPSET = 126
NR_PRCTL = 157
NR_MOUNT = 165
NR_SECCOMP = 317

# linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5  # Linux 5.19: a notified call is not broken off by each signal

# asm-generic/mman-common.h
PROT_READ, PROT_WRITE = 1, 2
MAP_PRIVATE, MAP_ANONYMOUS = 0x02, 0x20

_SCRATCH = 64 * 1024  # bytes mapped at a time in the tracee; its exec takes them away
_SOCK_FILTER = 8  # sizeof(struct sock_filter)
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # what Docker sets without an image's


class ExecutionError(WorkloadError):
    """The workload's program cannot be executed. `shell_code` is what a shell answers: 127 not found, 126 otherwise."""

    def __init__(self, message: str, hint: str, shell_code: int) -> None:
        super().__init__(message, hint)
        self.shell_code = shell_code


class Credentials(Protocol):
    """The ids to take: what a harness's `Credentials` has (this room knows no harness)."""

    @property
    def uid(self) -> int:
        """The user's id, in the tracee's user namespace."""

    @property
    def gid(self) -> int:
        """Its group."""

    @property
    def groups(self) -> tuple[int, ...]:
        """Its supplementary groups."""


class Steered(Tracee):
    """A seized gate: it makes the system calls that we name, with its own credentials and in its own namespaces."""

    _scratch = (0, 0)  # the next free address in the tracee's scratch memory, and its end

    def write(self, data: bytes) -> int:
        """Put `data` into the tracee's memory; returns its address there (a multiple of 16), valid until exec."""
        address, end = self._scratch
        if address + len(data) > end:
            size = -(-max(len(data), _SCRATCH) // memory.PAGE) * memory.PAGE
            address = self.syscall(NR_MMAP, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
            if -4096 < address < 0:
                raise HostError(
                    f"process {self.pid} cannot map {size} bytes: {os.strerror(-address)}",
                    "give the workload more memory, or a shorter command and environment",
                )
            end = address + size
        try:
            memory.write_bytes(self.pid, address, data)
        except ProcessLookupError as error:
            raise self._gone() from error
        self._scratch = (address + (len(data) + 15 & ~15), end)
        return address

    def install_filter(self, program: bytes) -> int:
        """Make the tracee confine itself by `program`, an array of struct sock_filter; returns its listener.

        The listener is a file descriptor of ours, close-on-exec; the tracee keeps none. Raises HostError where the
        kernel refuses it (seccomp(2): EBUSY, EACCES, EINVAL) and ValueError for what is no array of struct sock_filter.
        """
        killable = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        result = self._confine(program, (killable, SECCOMP_FILTER_FLAG_NEW_LISTENER))
        try:
            listener = self._fetch(result)
        finally:
            closed = self.syscall(NR_CLOSE, result)
        if closed < 0:
            os.close(listener)
            raise HostError(
                f"process {self.pid} cannot close its seccomp listener: {os.strerror(-closed)}",
                "run the container with another seccomp profile: the calls close and seccomp must be open to it",
            )
        return listener

    def _confine(self, program: bytes, flags: Sequence[int]) -> int:
        """The answer to seccomp(2) with the first of these flags that the kernel knows. Raises as `install_filter`."""
        count, rest = divmod(len(program), _SOCK_FILTER)
        if rest or not count:
            raise ValueError(f"{len(program)} bytes are no array of struct sock_filter")
        fprog = self.write(struct.pack("<HxxxxxxQ", count, self.write(program)))
        result = -errno.EINVAL
        for one in flags:
            result = self.syscall(NR_SECCOMP, SECCOMP_SET_MODE_FILTER, one, fprog)
            if result != -errno.EINVAL:
                break
        if result < 0:
            raise _filter_refused(-result)
        return result

    def _fetch(self, fd: int) -> int:
        pidfd = self._pidfd
        assert pidfd is not None
        try:
            ours = namespaces.pidfd_getfd(pidfd, fd)
        except OSError as error:
            raise HostError(
                f"the seccomp listener cannot be taken over from process {self.pid}: {error.strerror}",
                "a kernel with pidfd_getfd(2) (Linux 5.6) is needed, and CAP_SYS_PTRACE over the workload",
            ) from error
        assert fcntl.fcntl(ours, fcntl.F_GETFD) & fcntl.FD_CLOEXEC  # receive_fd: always so
        return ours

    def make_writable(self, mounts: Iterable[Mount]) -> tuple[Mount, ...]:
        """Make these mounts of the tracee's namespace writable; those that are, afterwards. The kernel refuses without
        SYS_ADMIN, and where a user namespace has locked the flag (mount(2), MS_REMOUNT)."""
        return tuple(mount for mount in mounts if self._is_writable(mount))

    def _is_writable(self, mount: Mount) -> bool:
        """Whether the mount is, or can be made. A file system that was mounted read-only is so as a whole, too."""
        flags = namespaces.mount_flags(mount.options - {"ro"}) | namespaces.MS_REMOUNT
        path = self.write(os.fsencode(mount.point) + b"\0")
        if "ro" in mount.super_options:
            return self.syscall(NR_MOUNT, 0, path, 0, flags, 0) == 0
        return "ro" not in mount.options or self.syscall(NR_MOUNT, 0, path, 0, flags | namespaces.MS_BIND, 0) == 0

    def take(self, credentials: Credentials) -> None:
        """Take an ordinary user's ids, from root, in runc's order (setupUser in libcontainer/init_linux.go): stdio,
        groups, gid, uid. The kernel empties the permitted and effective sets with the uid (cap_emulate_setxuid).

        Raises HostError when an id is refused.
        """
        self._give_stdio(credentials.uid)
        groups = self.write(struct.pack(f"<{len(credentials.groups)}I", *credentials.groups))
        for name, number, args in (
            ("setgroups", NR_SETGROUPS, (len(credentials.groups), groups)),
            ("setgid", NR_SETGID, (credentials.gid,)),
            ("setuid", NR_SETUID, (credentials.uid,)),
        ):
            result = self.syscall(number, *args)
            if result < 0:
                raise HostError(
                    f"the workload's process cannot take uid {credentials.uid}, gid {credentials.gid}: "
                    f"{name}: {os.strerror(-result)}",
                    "it must start as root, with SETUID and SETGID, in a user namespace that maps these ids",
                )

    def _give_stdio(self, uid: int) -> None:
        """fixStdioPermissions of runc: the user must be able to open /dev/stdout again; the group may be tty's."""
        buffer = self.write(bytes(144))  # struct stat of asm/stat.h
        for fd in (0, 1, 2):
            if self.syscall(NR_FSTAT, fd, buffer) < 0:
                continue  # closed
            owner, rdev = memory.read_u32(self.pid, buffer + 28), memory.read_u64(self.pid, buffer + 40)
            is_null = stat.S_ISCHR(memory.read_u32(self.pid, buffer + 24)) and rdev == os.makedev(1, 3)
            if owner == uid or is_null:
                continue
            result = self.syscall(NR_FCHOWN, fd, uid, -1)
            if result < 0 and -result not in (errno.EINVAL, errno.EPERM, errno.EROFS):
                raise HostError(
                    f"file descriptor {fd} of the workload cannot be given to uid {uid}: {os.strerror(-result)}",
                    "connect it to a pipe, a terminal or a file on a local file system",
                )

    def reduce(self, credentials: Credentials | None, kept: frozenset[str] | None) -> None:
        """Take the ids of `credentials` and give up every capability outside `kept`; None: stay as it is.

        The bounding set comes first, since the ids take SETPCAP away, and the other sets last, since the ids may be
        taken with a capability that is given up. Raises HostError where the kernel refuses.
        """
        if kept is not None:
            self.limit_bounding(kept)
        if credentials is not None:
            self.take(credentials)
        if kept is not None:
            self.limit(kept)

    def limit_bounding(self, kept: frozenset[str]) -> None:
        """Drop every capability outside `kept` from the bounding set, for good; needs SETPCAP.

        Done before `take`, which loses SETPCAP. Raises HostError where the kernel refuses.
        """
        for name in sorted(sets_of(self.pid).bounding - kept):
            number = int(name) if name.isdecimal() else NUMBER[name]
            result = self.syscall(NR_PRCTL, namespaces.PR_CAPBSET_DROP, number, 0, 0, 0)
            if result < 0:
                raise _not_limited(f"PR_CAPBSET_DROP {name}", -result)

    def limit(self, kept: frozenset[str]) -> None:
        """Reduce the permitted, effective and inheritable sets to what they hold of `kept`; the kernel then takes the
        rest out of the ambient set (cap_capset in security/commoncap.c). Done after `take`, before `execute`.

        Raises HostError where the kernel refuses.
        """
        now = sets_of(self.pid)
        words = [mask(held & kept) for held in (now.effective, now.permitted, now.inheritable)]
        header = self.write(capset_arguments(*words))
        result = self.syscall(NR_CAPSET, header, header + CAPSET_DATA)
        if result < 0:
            raise _not_limited("capset", -result)

    def execute(self, argv: Sequence[str], env: Sequence[str]) -> None:
        """Become the workload: execve argv with `env` (`NAME=value`), and stop before its first instruction.

        argv[0] without a slash is looked up in PATH of `env`, Docker's default PATH without one, with the rules of
        execvp(3) but without its fallback to a shell (as engines do). Afterwards `hold` or `detach`.
        Raises ExecutionError (the gate is then still held), TraceeEndedError.
        """
        if not argv or not argv[0]:
            raise ExecutionError("the workload has no program to execute", "name a command after --", 127)
        if any("\0" in word for word in (*argv, *env)):
            raise ExecutionError("an argument or variable of the workload contains a NUL", "remove it", 126)
        arguments, variables = self._array(argv), self._array(env)
        refused = errno.ENOENT
        for path in _candidates(argv[0], env):
            result = self._call(NR_EXECVE, self.write(os.fsencode(path) + b"\0"), arguments, variables)
            if result is None:
                return
            if -result == errno.EACCES:
                refused = errno.EACCES
            elif -result not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT):
                refused = -result
                break
        raise _not_executed(argv[0], refused)

    def _array(self, words: Sequence[str]) -> int:
        """The address of a NULL-terminated array of `words`."""
        encoded = [os.fsencode(word) + b"\0" for word in words]
        address = self.write(b"".join(encoded))
        pointers = []
        for word in encoded:
            pointers.append(address)
            address += len(word)
        return self.write(struct.pack(f"<{len(pointers) + 1}Q", *pointers, 0))


def _candidates(program: str, env: Sequence[str]) -> Iterator[str]:
    if "/" in program:
        yield program
        return
    path = next((word[5:] for word in env if word.startswith("PATH=")), _DEFAULT_PATH)
    for directory in path.split(":"):
        yield f"{directory}/{program}" if directory else f"./{program}"  # an empty one is the current directory


def _not_executed(program: str, number: int) -> ExecutionError:
    if number == errno.ENOENT:
        where = "not found" if "/" in program else "not found in PATH"
        hint = (
            "check its name, and that a script's interpreter is there too; both are looked up where the workload runs"
        )
        return ExecutionError(f"{program}: {where}", hint, 127)
    hint = {
        errno.EACCES: "make it executable, and the directories above it searchable, for the workload's user",
        errno.ENOEXEC: "it is for another architecture, or a script without #! in its first line",
        errno.E2BIG: "shorten the workload's arguments and environment",
    }.get(number, "see execve(2) for what this answer means")
    return ExecutionError(f"{program}: cannot be executed: {os.strerror(number)}", hint, 126)


def _not_limited(call: str, number: int) -> HostError:
    return HostError(
        f"the workload's process cannot give up capabilities: {call}: {os.strerror(number)}",
        "it must start with SETPCAP, and its seccomp profile must allow prctl and capset",
    )


def _filter_refused(number: int) -> HostError:
    hint = {
        errno.EBUSY: "its seccomp profile already has a listener (SCMP_ACT_NOTIFY); profile it with another profile",
        errno.EACCES: "the traced run needs CAP_SYS_ADMIN at its start, which this engine or host did not grant",
        errno.EPERM: "the container's own seccomp profile denies seccomp(2); profile it with another profile",
        errno.EINVAL: "a kernel with seccomp user notification is needed (Linux 5.5)",
    }.get(number, "see seccomp(2) for what this answer means")
    return HostError(f"the workload's process cannot install the filter: {os.strerror(number)}", hint)
