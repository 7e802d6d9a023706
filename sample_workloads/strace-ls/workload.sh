#!/bin/sh
# Traces a program of its own: needs ptrace(2), which the default filter allows, and nothing else.
set -eu
strace -f -o /tmp/trace ls / > /tmp/listing
grep -m1 'execve("/usr/bin/ls"' /tmp/trace
grep -q '^etc$' /tmp/listing
