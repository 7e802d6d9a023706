#!/bin/sh
# Mounts a FUSE file system (bindfs, which shows a directory in another place) and reads through it.
set -eu
mkdir -p /srv/original
echo through > /srv/original/file
bindfs --no-allow-other /srv/original /mnt
grep ' /mnt fuse' /proc/mounts
content=$(cat /mnt/file)
umount /mnt
test "$content" = through
