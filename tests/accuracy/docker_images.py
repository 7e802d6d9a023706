"""The images of the Docker corpus: two userlands of this machine's own suite, and what their workloads find in them."""

from __future__ import annotations

import images

SERVICES = (
    "apache2", "at", "avahi-daemon", "bind9", "busybox-static", "catatonit", "chrony", "cron", "curl", "dbus",
    "dnsmasq", "dovecot-imapd", "dumb-init", "expect", "gosu", "haproxy", "iproute2", "libcap2-bin", "lighttpd",
    "login", "logrotate", "mariadb-server", "memcached", "monit", "mosquitto", "netcat-openbsd", "opendoas",
    "openssh-server",    "openssh-client", "passwd", "php-fpm", "postfix", "postgresql", "procps", "python3-minimal",
    "redis-server", "rinetd", "rpcbind", "rsyslog", "runit", "s6", "samba", "smbclient", "slapd", "snmpd", "socat",
    "squid", "stunnel4", "sudo", "supervisor", "systemd-standalone-tmpfiles", "tftpd-hpa", "tini", "unbound", "vsftpd",
    "xinetd",
)  # fmt: skip
BUILDING = (
    "acl", "attr", "bubblewrap", "buildah", "btrfs-progs", "busybox-static", "cpio", "cryptsetup-bin", "debootstrap",
    "dosfstools", "dpkg-dev", "e2fsprogs", "erofs-utils", "fakechroot", "fakeroot", "fdisk", "file", "fuse-overlayfs",
    "genisoimage", "gcc", "git", "iputils-ping", "kpartx", "libc6-dev", "libcap2-bin", "make", "mmdebstrap", "mount",
    "mtools", "npm", "parted", "procps", "python3-pip", "python3-venv", "qemu-utils", "quota", "rpm", "rsync",
    "skopeo", "squashfs-tools", "sudo", "umoci", "unzip", "util-linux", "xfsprogs", "xorriso", "zip", "zstd",
)  # fmt: skip
# Packages that the workloads install: with accounts, set-user-ID and set-group-ID programs, file capabilities.
LOCAL_PACKAGES = ("at", "cron", "dbus", "fping", "man-db", "memcached", "mtr-tiny", "openssh-client", "screen")
LOCAL_REPOSITORY = (
    f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -y --download-only --no-install-recommends install '
    f'{" ".join(LOCAL_PACKAGES)} && mkdir -p "$1/srv/debs" && cp "$1"/var/cache/apt/archives/*.deb "$1/srv/debs" && '
    'chroot "$1" sh -c "cd /srv/debs && dpkg-scanpackages --multiversion . > Packages"'
)


def services() -> str:
    """The tag of the userland with services and with programs that change their user."""
    return images.userland("services", SERVICES)


def building() -> str:
    """The tag of the userland with package managers, archivers and image builders; /srv/debs is a local repository."""
    return images.userland("building", BUILDING, (LOCAL_REPOSITORY,))
