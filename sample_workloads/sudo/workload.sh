#!/bin/sh
# An ordinary user becomes root by a setuid program, and another user by way of root.
set -eu
test "$(id -un)" = alice
test "$(sudo --non-interactive id -u)" = 0
test "$(sudo --non-interactive --user nobody id -un)" = nobody
echo 'alice became root and nobody'
