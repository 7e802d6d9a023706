#!/bin/sh
# The archive that the inner engine imports as its only image.
set -eu
mkdir -p /srv/root/bin
cp /bin/busybox /srv/root/bin/busybox
tar -C /srv/root -cf /srv/root.tar .
rm -r /srv/root
