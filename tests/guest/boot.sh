#!/bin/sh
# boot.sh DIRECTORY DISK PAYLOAD RESULTS SECONDS: boots DISK (qcow2, written to) with the kernel in DIRECTORY and the tar
# archive PAYLOAD as its second disk, copies what the guest says to standard output, and unpacks what it hands out into
# the new directory RESULTS. Exits with the guest's own code; with 3, after the console's last lines, when it gave none.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/settings.sh"
directory=$1 disk=$2 payload=$3 results=$4 seconds=$5

scratch=$(mktemp -d)
qemu=
cleanup() {
    if [ -n "$qemu" ]; then kill "$qemu" 2> /dev/null || true; wait "$qemu" 2> /dev/null || true; fi
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# starts MACHINE…: whether the guest's kernel says its first word on such a machine. /dev/kvm may exist and still refuse this
# CPU's registers, or stop at an instruction that it cannot emulate.
starts() {
    : > "$scratch/console"
    qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot "$@" -m 512 -nic none \
        -kernel "$directory/vmlinuz" -append 'console=ttyS0 earlyprintk=serial panic=-1' \
        -chardev "file,id=console,path=$scratch/console" -serial chardev:console < /dev/null 2> "$scratch/qemu.log" &
    qemu=$!
    tries=100
    until grep -q 'Linux version' "$scratch/console"; do
        if ! kill -0 "$qemu" 2> /dev/null || grep -q '^KVM internal error' "$scratch/qemu.log" || [ $((tries -= 1)) = 0 ]
        then break; fi
        sleep 0.1
    done
    kill "$qemu" 2> /dev/null || true
    wait "$qemu" 2> /dev/null || true
    qemu=
    grep -q 'Linux version' "$scratch/console"
}

if [ -w /dev/kvm ] && starts -accel kvm -cpu host; then
    machine='-accel kvm -cpu host -smp 2'
elif [ -w /dev/kvm ] && starts -accel kvm -cpu host,arch-capabilities=off; then
    machine='-accel kvm -cpu host,arch-capabilities=off -smp 2'
else
    # One processor: the kernel patches its own text to switch trace events and kprobes on, and a second emulated processor
    # was seen to meet such an int3 when the kernel no longer knew of it (a panic in __schedule).
    machine='-accel tcg -cpu max -smp 1'
    say 'no KVM here that boots a stock kernel: emulating, which takes some ten times longer'
fi
truncate --size=64M "$scratch/results.img"
: > "$scratch/stream"
: > "$scratch/console"
# shellcheck disable=SC2086 # $machine is several words
timeout --kill-after=10 "$seconds" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
    $machine -m 3072 -nic none \
    -kernel "$directory/vmlinuz" -initrd "$directory/initrd.img" \
    -append "root=LABEL=guest rw console=ttyS0 panic=-1 systemd.show_status=false loglevel=5 $(cat "$directory/cmdline" 2> /dev/null || true)" \
    -drive "file=$disk,if=none,id=root,format=qcow2,cache=unsafe,discard=unmap" -device virtio-blk-pci,drive=root \
    -drive "file=$payload,if=none,id=payload,format=raw,readonly=on" \
    -device virtio-blk-pci,drive=payload,serial=payload \
    -drive "file=$scratch/results.img,if=none,id=results,format=raw" \
    -device virtio-blk-pci,drive=results,serial=results \
    -device virtio-rng-pci \
    -chardev "file,id=console,path=$scratch/console" -serial chardev:console \
    -device virtio-serial-pci -chardev "file,id=stream,path=$scratch/stream" \
    -device virtserialport,chardev=stream,name=capprofile \
    < /dev/null 2> "$scratch/qemu.log" &
qemu=$!
tail --pid="$qemu" --sleep-interval=0.3 --bytes=+1 --follow "$scratch/stream" 2> /dev/null
ended=0
wait "$qemu" || ended=$?
qemu=

mkdir -p "$results"
cp "$scratch/console" "$results/console.log"
tar --extract --file="$scratch/results.img" -C "$results" 2> /dev/null || true
if [ ! -e "$results/exit-code" ]; then
    say 'the last lines of the console:'
    tail -n 25 "$scratch/console" | tr -d '\r' >&2
    cat "$scratch/qemu.log" >&2
    case $ended in
        124 | 137) say "the guest was not done after $seconds seconds and was stopped" ;;
        0) say 'the guest ended without handing out a result' ;;
        *) say "qemu failed with $ended" ;;
    esac
    exit 3
fi
exit "$(cat "$results/exit-code")"
