#!/bin/sh
# selinux.sh ROOT: makes the guest's finished root directory one that SELinux confines: Debian's own policy, enforced; an
# engine that labels its containers; every file labelled here, where nothing is emulated. Needs root; no SELinux on the host.
#
# Debian's policy and Fedora's differ in what is switched on. Here containers may use the capabilities that they are given,
# and the engine may mount and relabel what the user names, as on Fedora and its like.
set -eu
root=$1

cat > "$root/etc/selinux/config" <<'CONFIG'
SELINUX=enforcing
SELINUXTYPE=default
CONFIG
mkdir -p "$root/etc/docker" "$root/etc/systemd/system/capprofile-guest.service.d"
echo '{"selinux-enabled": true}' > "$root/etc/docker/daemon.json"
# What an administrator's login shell is, and not a service.
cat > "$root/etc/systemd/system/capprofile-guest.service.d/selinux.conf" <<'UNIT'
[Service]
SELinuxContext=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023
UNIT

# setsebool wants a kernel with SELinux; this is where it would write.
cat >> "$root/var/lib/selinux/default/active/booleans.local" <<'BOOLEANS'
container_mounton_non_security=1
container_use_host_all_caps=1
BOOLEANS
cp "$(dirname "$0")/selinux.cil" "$root/tmp/capprofile-guest.cil"
chroot "$root" semodule --noreload --install /tmp/capprofile-guest.cil
rm "$root/tmp/capprofile-guest.cil"

# Setting the attribute needs no policy in this kernel. -m: what is mounted here says nothing of the guest.
chroot "$root" setfiles -m -F /etc/selinux/default/contexts/files/file_contexts /
