#!/bin/sh
# What the kernel says of this process: its capability sets, whether a filter is installed, whether sudo could work.
set -eu
grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status
