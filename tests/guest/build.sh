#!/bin/sh
# build.sh [--lsm selinux] [USERLAND…]: makes the stock Debian guest once and prints the directory that holds it: vmlinuz,
# initrd.img, root.img, cmdline. USERLAND names test images' userlands (`tools`, `builders`; all of them unless told) that
# it has at hand. With `--lsm selinux` its security module is SELinux in place of AppArmor: a base and a guest of their own.
# Both layers are cached by the hash of all that they are made of, outside the repository:
#   base-HASH/   a Debian as mmdebstrap makes it: stock kernel, systemd, Docker, AppArmor, Python
#   guest-HASH/  a file system of it, with the tests' Python environment and the userlands
# `build.sh --remove` removes the cache. Needs root (mmdebstrap's root mode), mmdebstrap, qemu, e2fsprogs.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/settings.sh"

if [ "${1:-}" = --remove ]; then
    rm -rf "$CACHE"
    exit 0
fi

lsm=apparmor
if [ "${1:-}" = --lsm ]; then lsm=$2 && shift 2; fi
packages='linux-image-amd64 initramfs-tools systemd systemd-sysv udev dbus docker.io docker-cli containerd runc iptables
    nftables apparmor python3 python3-venv python3-pip make git strace busybox-static mmdebstrap e2fsprogs kmod procps
    iproute2 iputils-ping libcap2-bin fuse3 mount util-linux gcc libc6-dev ca-certificates'
case $lsm in
    apparmor) own= cmdline= ;;
    selinux)
        packages="$packages selinux-policy-default policycoreutils"
        own="$here/selinux.sh $here/selinux.cil"
        cmdline=security=selinux
        ;;
    *) say "there is no guest with $lsm: apparmor or selinux" && exit 2 ;;
esac
packages=$(echo $packages | tr ' ' ',')

need() { # need PROGRAM PACKAGE: install the package when the program is missing
    command -v "$1" > /dev/null || "$REPOSITORY/.ci/packages" "$2"
}

need mmdebstrap mmdebstrap
need qemu-system-x86_64 qemu-system-x86
need qemu-img qemu-utils
need mke2fs e2fsprogs
mkdir -p "$CACHE"
exec 9> "$CACHE/lock"
flock 9 # one builder at a time; others find the finished guest

python=$REPOSITORY/.venv/bin/python
tags=$("$python" "$here/userlands.py" tags "$SUITE" "$@")
requirements=$("$python" -c '
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
print("\n".join([*project["dependencies"], *project["optional-dependencies"]["dev"]]))
' "$REPOSITORY/pyproject.toml" | grep -v -e '^mypy' -e '^ruff') # the guest runs tests; lint is the host's affair

digest() { sha256sum | cut -c 1-16; }
base_hash=$( { echo "$SUITE $packages"; cat "$here/base.sh"; } | digest)
base=$CACHE/base-$base_hash
# shellcheck disable=SC2086 # $own is several words, or none
guest_hash=$( { echo "$base_hash $tags $requirements$cmdline"; cat "$here/prime.sh" $own; } | digest)
guest=$CACHE/guest-$guest_hash

if [ -e "$guest/root.img" ]; then
    touch "$guest" "$base"
    echo "$guest"
    exit 0
fi
rm -rf "$CACHE"/.build-* # what a builder left that was killed: there is no other one
work=$(mktemp -d "$CACHE/.build-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

if [ ! -e "$base/root.tar" ]; then
    say "making $SUITE with mmdebstrap"
    "$python" "$here/userlands.py" sources "$SUITE" > "$work/sources"
    apt-config dump Acquire | grep -E '::(Proxy|CaInfo|Verify-|Check-)' | grep -v '""' > "$work/apt.conf" || true
    mkdir "$work/base"
    if ! mmdebstrap --mode=root --variant=important --format=tar --include="$packages" \
        --aptopt="$work/apt.conf" --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/kernel"' \
        --essential-hook='echo MODULES=list > "$1/etc/initramfs-tools/conf.d/guest"' \
        --essential-hook='printf "virtio_pci\nvirtio_blk\next4\n" > "$1/etc/initramfs-tools/modules"' \
        --customize-hook="$here/base.sh \"\$1\"" \
        "$SUITE" "$work/base/root.tar" - < "$work/sources" > "$work/log" 2>&1 9>&-; then
        tail -n 20 "$work/log" >&2
        say "mmdebstrap could not make $SUITE from this machine's apt sources"
        exit 3
    fi
    rm -rf "$base"
    mv "$work/base" "$base"
fi

say 'fetching what its Python tests need'
mkdir "$work/payload"
echo "$requirements" > "$work/requirements"
# Unpacked here for Debian 13's Python, which is not this machine's.
"$python" -m pip install --quiet --target "$work/payload/site-packages" --no-compile --no-warn-conflicts \
    --python-version 3.13 --implementation cp --only-binary=:all: --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --requirement "$work/requirements" \
    > "$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 3; }

say 'making the test images of its suite'
mkdir -p "$CACHE/userlands"
"$python" "$here/userlands.py" pack "$SUITE" "$CACHE/userlands" "$@" > "$work/archives" 9>&-

say 'putting these into its file system'
mkdir "$work/root" "$work/guest"
tar --extract --file="$base/root.tar" -C "$work/root" --numeric-owner --xattrs --xattrs-include='*'
cp "$REPOSITORY/tests/images.py" "$here/userlands.py" "$work/payload/"
# shellcheck disable=SC2046 # one word an archive
if ! "$here/prime.sh" "$work/root" "$work/payload" $(cat "$work/archives") > "$work/log" 2>&1 9>&-; then
    tail -n 20 "$work/log" >&2
    say 'the guest could not be prepared'
    exit 3
fi
if [ "$lsm" = selinux ] && ! "$here/selinux.sh" "$work/root" > "$work/log" 2>&1; then
    tail -n 20 "$work/log" >&2
    say 'the guest could not be labelled'
    exit 3
fi
[ -z "$cmdline" ] || echo "$cmdline" > "$work/guest/cmdline"
cp "$work"/root/boot/vmlinuz-* "$work/guest/vmlinuz"
cp "$work"/root/boot/initrd.img-* "$work/guest/initrd.img"
truncate --size=12G "$work/guest/root.img"
mke2fs -q -t ext4 -L guest -d "$work/root" "$work/guest/root.img"
rm -rf "$guest"
mv "$work/guest" "$guest"
# What no run has used for two weeks is of an older revision.
find "$CACHE" -mindepth 1 -maxdepth 1 -name '*-*' -type d -mtime +14 -exec rm -rf {} +
echo "$guest"
