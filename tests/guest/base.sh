#!/bin/sh
# Run by mmdebstrap on the guest's new root directory ($1): the unit that runs what the payload disk brings, and a boot
# without what a guest of one minute does not need.
set -eu
root=$1

echo guest > "$root/etc/hostname"
printf '127.0.0.1 localhost guest\n::1 localhost\n' > "$root/etc/hosts"
printf 'LABEL=guest / ext4 defaults 0 0\n' > "$root/etc/fstab"
rm -rf "$root"/etc/apt/sources.list* "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/var/lib/apt/lists/*
mkdir -p "$root/var/lib/capprofile"

# The payload is a tar archive on a raw disk: no file system that either side would have to mount.
cat > "$root/usr/local/sbin/capprofile-start" <<'START'
#!/bin/sh
set -eu
mkdir -p /srv/payload
tar --extract --file=/dev/disk/by-id/virtio-payload -C /srv/payload --no-same-owner
exec /srv/payload/start
START
chmod 755 "$root/usr/local/sbin/capprofile-start"

cat > "$root/etc/systemd/system/capprofile-guest.service" <<'UNIT'
[Unit]
Description=What the payload disk brings
After=docker.service apparmor.service systemd-udev-settle.service
Wants=docker.service
# However it ends, the guest ends too: whoever started it waits for that.
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/capprofile-start
StandardOutput=journal+console
StandardError=journal+console
TimeoutStartSec=infinity
Environment=HOME=/root LANG=C.UTF-8
# As in a login shell of root, and unlike a service: no limit on tasks.
TasksMax=infinity

[Install]
WantedBy=multi-user.target
UNIT
chroot "$root" systemctl --quiet enable capprofile-guest.service docker.service
chroot "$root" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service \
    man-db.timer fstrim.timer dpkg-db-backup.timer getty@tty1.service serial-getty@ttyS0.service
