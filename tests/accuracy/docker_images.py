"""The images of the Docker corpus: userlands of this machine's own suite, and what their workloads find in them."""

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
NETWORKING = (
    "bird2", "bridge-utils", "busybox-static", "conntrack", "curl", "dante-server", "fail2ban", "fping", "hping3",
    "iproute2", "ipset", "iptables", "kea-dhcp4-server", "keepalived", "lldpd", "netcat-openbsd", "nftables", "nmap",
    "nsd", "openssh-client", "openssh-server", "openvpn", "procps", "proftpd-core", "rsync", "traceroute", "udhcpc",
    "udhcpd",
)  # fmt: skip
OBSERVING = (
    "acct", "bpftool", "btrfs-progs", "busybox-static", "cpulimit", "crun", "fuse3", "gdb", "iproute2", "keyutils",
    "linux-perf", "lsof", "lvm2", "lxc", "mount", "numactl", "openssh-client", "openssh-server", "procps", "psmisc",
    "python3", "runit", "schroot", "slirp4netns", "squashfs-tools", "squashfuse", "sshfs", "uidmap", "util-linux",
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


def networking() -> str:
    """The tag of the userland with what configures, watches and serves networks."""
    return images.userland("networking", NETWORKING)


def observing() -> str:
    """The tag of the userland with debuggers, tracers, file systems of programs, and what makes namespaces."""
    return images.userland("observing", OBSERVING)


def building() -> str:
    """The tag of the userland with package managers, archivers and image builders; /srv/debs is a local repository."""
    return images.userland("building", BUILDING, (LOCAL_REPOSITORY,))
