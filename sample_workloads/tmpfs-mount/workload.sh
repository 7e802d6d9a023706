#!/bin/sh
# A build step that wants its scratch space in memory: mounts a tmpfs, works in it, keeps the result, unmounts it.
set -eu
mkdir -p /scratch /out
mount -t tmpfs -o size=8m,mode=700 scratch /scratch
grep ' /scratch tmpfs ' /proc/mounts
cp -R /etc /scratch/tree
tar -C /scratch/tree -cf /out/etc.tar .
umount /scratch
tar -tf /out/etc.tar ./passwd
