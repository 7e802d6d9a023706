#!/bin/sh
# An engine in a container: starts dockerd, imports an image, runs one container of it, and stops the engine.
set -eu

# The outer engine mounts the cgroups read-only; the inner one has to make groups of its own. A mount's read-only flag is
# lifted by a remount of that mount alone.
if test -e /sys/fs/cgroup/cgroup.controllers; then
    mount -o remount,bind,rw /sys/fs/cgroup
    # cgroup v2 has no processes in inner nodes: move ours to a leaf before controllers are handed down.
    mkdir -p /sys/fs/cgroup/init
    xargs -rn1 < /sys/fs/cgroup/cgroup.procs > /sys/fs/cgroup/init/cgroup.procs 2> /dev/null || true
    sed 's/ / +/g; s/^/+/' < /sys/fs/cgroup/cgroup.controllers > /sys/fs/cgroup/cgroup.subtree_control
else
    awk '$3 == "cgroup" { print $2 }' /proc/mounts | while read -r hierarchy; do mount -o remount,bind,rw "$hierarchy"; done
fi

dockerd --storage-driver vfs --bridge none --iptables=false --ip-forward=false > /tmp/dockerd.log 2>&1 &
dockerd=$!
until docker info > /dev/null 2>&1; do
    kill -0 "$dockerd" 2> /dev/null || { tail -n 5 /tmp/dockerd.log >&2; exit 1; }
    busybox usleep 50000
done
docker import /srv/root.tar inner > /dev/null
answer=$(docker run --rm --network none inner /bin/busybox echo 'from the inner container') || status=$?
kill "$dockerd"
wait "$dockerd" || true
echo "${answer:-nothing}"
test "${status:-0} $answer" = '0 from the inner container'
