#!/bin/bash
# Runs a command on this host's files with one bounding set and chosen device nodes: util-linux and coreutils only, so
# that what it says of a recipe owes nothing to capprofile. Process 1 of new namespaces; its argument list:
#   STORE (an empty directory) BOUNDING (as setpriv takes it) NODES (a file: path kind major minor mode uid gid) COMMAND…
set -e
store=$1 bounding=$2 nodes=$3
shift 3
here=$PWD
root=$store/root
mount --make-rprivate /
mkdir "$store/upper" "$store/work" "$root"
chmod 755 "$store/upper"
mount -t overlay oracle -o "lowerdir=/,upperdir=$store/upper,workdir=$store/work" "$root"
if [ ! -d "$root$here" ]; then # on a file system of its own, as /tmp may be
    mkdir "$store/upper-here" "$store/work-here"
    mkdir -p "$root$here"
    chown --reference="$here" "$store/upper-here"
    chmod --reference="$here" "$store/upper-here"
    mount -t overlay oracle -o "lowerdir=$here,upperdir=$store/upper-here,workdir=$store/work-here" "$root$here"
fi
ip link set lo up
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
for own in net kernel/hostname kernel/domainname kernel/ns_last_pid; do
    mount --bind "$root/proc/sys/$own" "$root/proc/sys/$own"
done
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    for controller in cpu memory pids; do
        mkdir "$root/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "$root/sys/fs/cgroup/$controller"
    done
fi
mount -o remount,bind,ro "$root/sys"
# covered below: user namespaces may mount a /proc of their own where one is fully visible, as it is on the host
mount -t tmpfs tmpfs "$root/dev"
mkdir "$root/dev/shm"
mount -t proc proc "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
for link in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2 ptmx:pts/ptmx; do
    ln -s "${link#*:}" "$root/dev/${link%%:*}"
done
while read -r path kind major minor mode uid gid; do
    mkdir -p "$(dirname "$root$path")"
    mknod -m "$mode" "$root$path" "$kind" "$major" "$minor"
    chown "$uid:$gid" "$root$path"
done < "$nodes"
cd "$root"
pivot_root . .
umount -l .
cd "$here"
setpriv --bounding-set="$bounding" --inh-caps=-all --ambient-caps=-all -- "$@"
exit $?
