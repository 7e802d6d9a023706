#!/bin/sh
# Makes an ext4 image, mounts it through a loop device, writes into it, and finds the bytes again after a second mount.
set -eu
image=/tmp/disk.img
truncate -s 8M "$image"
mkfs.ext4 -q -F "$image"
mount -o loop "$image" /mnt
grep ' /mnt ext4 ' /proc/mounts
echo kept > /mnt/file
umount /mnt
mount -o loop,ro "$image" /mnt
content=$(cat /mnt/file)
umount /mnt
test "$content" = kept
