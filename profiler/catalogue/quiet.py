"""Calls that ask for no capability and tell nothing of a process: a denied run does not stop at them. Data.

They are what programs do most: waiting, locking, looking at the time, handling signals, managing memory. Where the
catalogue of traced calls has conditions for one of them, it is stopped for these.
"""

from __future__ import annotations

from typing import Final

_WORDS = (
    # waiting and locking
    "futex futex_waitv futex_wait futex_wake futex_requeue nanosleep clock_nanosleep sched_yield pause restart_syscall "
    "epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6 wait4 waitid membarrier "
    # signals
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack "
    # the time, and who one is
    "clock_gettime clock_getres gettimeofday time times getrusage getitimer getpid gettid getppid getpgrp getpgid "
    "getsid getuid geteuid getgid getegid getresuid getresgid getgroups getcpu getrandom uname umask "
    # memory and threads
    "brk mmap munmap mremap mprotect madvise msync set_robust_list set_tid_address rseq arch_prctl exit exit_group "
    # descriptors that are open
    "lseek fstat close close_range dup dup2 dup3 eventfd2 epoll_create1"
)
QUIET: Final[frozenset[str]] = frozenset(_WORDS.split())
