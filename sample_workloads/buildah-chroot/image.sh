#!/bin/sh
# What the build starts from: a root with busybox in it, and the file that says what to do with it.
set -eu
mkdir -p /srv/context/root/bin
cp /bin/busybox /srv/context/root/bin/busybox
ln -s busybox /srv/context/root/bin/sh
cat > /srv/context/Containerfile << 'END'
FROM scratch
COPY root /
RUN busybox echo built > /made && busybox chown 1:1 /made
END
# Whole copies of every layer: an overlay upon the container's own overlay is not possible.
printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n' \
    > /etc/containers/storage.conf
# Newer buildah wants its helper for networks to be there, though nothing here has a network (Debian only recommends it).
mkdir -p /usr/lib/podman
test -e /usr/lib/podman/netavark || ln -s /bin/true /usr/lib/podman/netavark
