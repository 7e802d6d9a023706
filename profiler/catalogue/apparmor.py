"""What the profile docker-default denies to every container that is not `--privileged`, capabilities or not. Data.

Read in moby's profiles/apparmor/template.go (Docker 26), seen on Debian 13. Its rules are explicit `deny`s, so
the kernel logs nothing when they strike; `umount` is allowed.
"""

from __future__ import annotations

import re

# `deny mount` covers every mount(2), also a remount and a change of propagation (security/apparmor/lsm.c,
# apparmor_sb_mount, apparmor_move_mount); no rule allows pivot_root(2) (apparmor_sb_pivotroot).
DENIED_CALLS: frozenset[str] = frozenset({"mount", "move_mount", "pivot_root"})

# The `deny … w` rules for files. Their glob's `*` and classes never match a slash, `**` does. A process's own directory
# is known to the kernel by its number, which no rule names.
DENIED_WRITES: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern)
    for pattern in (
        r"/proc/[^/]+",
        r"/proc/(?!self/|thread-self/)"
        r"(?:[^1-9/]|[^1-9/][^0-9/]|[^1-9s/][^0-9y/][^0-9s/]|[^1-9/][^0-9/][^0-9/][^0-9/][^/]*)/.+",
        r"/proc/sys/[^k/].*",
        r"/proc/sys/kernel/(?:[^/]|[^/]{2}|[^s/][^h/][^m/].*)",
        r"/sys/[^f/][^/]*/.+",
        r"/sys/f[^s/][^/]*/.+",
        r"/sys/fs/[^c/][^/]*/.+",
        r"/sys/fs/c[^g/][^/]*/.+",
        r"/sys/fs/cg[^r/][^/]*/.+",
        r"/sys/firmware/.+",
    )
)
