#!/bin/sh
# Runs the project's tests in a stock Debian guest: true --privileged, all capabilities, AppArmor, cgroup v2, kprobes.
#   run.sh [--deadline SECONDS] [PYTEST ARGUMENT…]   tests/unit, tests/kernel and tests/engine unless told otherwise
#   run.sh [--deadline SECONDS] --shell COMMAND…     one shell command as root in the project's directory
# --lsm selinux: in a guest that SELinux confines in place of AppArmor.
# --userlands NAMES: only these of the test images' userlands are at hand there (tools, builders; both unless told).
# Tests that are not done a minute before the deadline are ended, and what was done is told.
# Exits with pytest's (or the command's) code; with 3 when there is no guest to run in. The working tree goes in as it is
# (what git does not ignore). Results (junit.xml, pytest.log, kernel.log, console.log) are kept in the cache's last-run.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/settings.sh"

seconds=7200 # an emulated guest is slow; with KVM a fraction of it is needed
mode=tests
lsm=apparmor
userlands=
while [ $# -gt 0 ]; do
    case $1 in
        --deadline) seconds=$2 && shift 2 ;;
        --lsm) lsm=$2 && shift 2 ;;
        --userlands) userlands=$2 && shift 2 ;;
        --shell) mode=shell && shift && break ;;
        --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 0 ;;
        *) break ;;
    esac
done
if [ "$(id -u)" -ne 0 ]; then
    say 'building the guest needs root'
    exit 3
fi
if [ "$(uname -m)" != x86_64 ]; then
    say "the guest is x86_64, this machine is $(uname -m)"
    exit 3
fi
if [ "$mode" = tests ] && [ $# -eq 0 ]; then
    for suite in tests/unit tests/kernel tests/engine; do
        [ -z "$(find "$REPOSITORY/$suite" -name 'test_*.py' 2> /dev/null | head -n 1)" ] || set -- "$@" "$suite"
    done
fi

# shellcheck disable=SC2086 # one word a userland
guest=$("$here/build.sh" --lsm "$lsm" $userlands)
work=$(mktemp -d "$CACHE/.run-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$work/extra/.guest-run"
echo "$mode" > "$work/extra/.guest-run/mode"
echo "$seconds" > "$work/extra/.guest-run/seconds"
printf '%s\n' "$*" > "$work/extra/.guest-run/command"
{
    printf 'set --'
    for argument in "$@"; do printf " '%s'" "$(printf %s "$argument" | sed "s/'/'\\\\''/g")"; done
    echo
} > "$work/extra/.guest-run/arguments"
printf '#!/bin/sh\nexec /srv/payload/tests/guest/inside.sh\n' > "$work/extra/start"
chmod 755 "$work/extra/start"
# A file that vanishes between the two commands is another session's affair.
(cd "$REPOSITORY" && git ls-files --cached --others --exclude-standard -z |
    tar --create --file="$work/payload.tar" --null --files-from=- --ignore-failed-read 2> /dev/null) || true
tar --append --file="$work/payload.tar" -C "$work/extra" .guest-run start
qemu-img create -q -f qcow2 -F raw -b "$guest/root.img" "$work/root.qcow2"

[ "$mode" = shell ] || say 'booting'
code=0
"$here/boot.sh" "$guest" "$work/root.qcow2" "$work/payload.tar" "$work/results" "$seconds" || code=$?
rm -rf "$CACHE/last-run"
mv "$work/results" "$CACHE/last-run"
exit "$code"
