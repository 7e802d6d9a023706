#!/bin/sh
# What rootless container tools do first: an ordinary user makes a user and a mount namespace and mounts in there.
set -eu
test "$(id -u)" = 1000
unshare --user --map-root-user --mount sh -ec '
    test "$(id -u)" = 0
    mount -t tmpfs inner /mnt
    grep " /mnt tmpfs " /proc/mounts'
