"""Calls that no program decides to make: whether they happen depends on timing, memory or the machine. Data.

An allow-list of what was observed holds them too, for the next run may make them where the observed one did not. The
workload needs them, and so does a runtime written in Go between loading the filter and executing the workload. None of
them reaches beyond what the process itself already has.
"""

from __future__ import annotations

from typing import Final

INCIDENTAL: Final[dict[str, str]] = {
    # made or implied by the kernel
    "restart_syscall": "the kernel puts it in place of a sleep that a signal has interrupted",
    "rt_sigreturn": "every signal handler ends with it",
    "exit": "every thread ends with it",
    "exit_group": "every program ends with it",
    # read without a call only while the clock source allows it (vdso(7))
    "clock_gettime": "the vDSO makes the call where it cannot read the clock itself",
    "gettimeofday": "the vDSO makes the call where it cannot read the clock itself",
    "time": "the vDSO makes the call where it cannot read the clock itself",
    "getcpu": "the vDSO makes the call where it cannot read the number itself",
    # locks: a call is made only when two threads meet
    "futex": "a lock calls it only if another thread holds it",
    "sched_yield": "a lock that spins calls it only if it did not get it in time",
    # memory: calls depend on what is free already (malloc(3), runtime/mem_linux.go)
    "brk": "malloc grows its heap only if nothing is free",
    "mmap": "malloc and Go's heap grow only if nothing is free",
    "munmap": "malloc and Go's heap give back what has become free",
    "mprotect": "malloc makes its arenas usable piece by piece, and a thread's stack gets its guard",
    "madvise": "malloc, ended threads and Go's scavenger give pages back",
    # Go's scheduler (runtime/proc.go, runtime/os_linux.go, runtime/netpoll_epoll.go): its monitor wakes up on its own,
    # and any thread may start another one or interrupt one that runs for too long
    "nanosleep": "Go's monitor thread sleeps between its rounds",
    "tgkill": "Go interrupts a thread that runs for too long",
    "getpid": "Go asks it before it interrupts a thread",
    "gettid": "Go asks it in each new thread",
    "clone": "Go starts a thread when one is blocked in a call",
    "rt_sigprocmask": "Go and libc block signals while a thread starts",
    "sigaltstack": "Go gives each new thread a stack for signals",
    "set_robust_list": "libc calls it in each new thread",
    "rseq": "libc calls it in each new thread",
    "epoll_pwait": "Go's monitor looks for ready descriptors",
    "epoll_ctl": "Go adds and removes descriptors that it waits for",
    "read": "Go empties the descriptor that woke its poller",
    "write": "Go wakes its poller through a descriptor",
}
# The same of 32-bit programs, where their table has another name for it.
INCIDENTAL_I386: Final[dict[str, str]] = {
    "sigreturn": "every signal handler ends with it",
    "clock_gettime64": "the vDSO makes the call where it cannot read the clock itself",
    "futex_time64": "a lock calls it only if another thread holds it",
    "mmap2": "malloc and Go's heap grow only if nothing is free",
}
