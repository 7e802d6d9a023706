#!/bin/sh
# prime.sh ROOT PAYLOAD ARCHIVE…: makes what the guest's tests need in its root directory ROOT, natively: their Python
# environment from PAYLOAD/site-packages, and the images of the userlands' archives by the guest's own Docker. Under
# emulation the same took six minutes. Needs root; writes nothing outside ROOT.
#
# That Docker runs in namespaces of its own and sees neither this machine's network nor its security modules (no
# securityfs: it would load its AppArmor profile into this kernel); it starts no container. It ends with its namespace.
set -eu
root=$1 payload=$2
shift 2

venv=$root/opt/venv
chroot "$root" python3 -m venv --without-pip /opt/venv
site=$(echo "$venv"/lib/python3.*/site-packages)
cp -r "$payload/site-packages/." "$site/"
# The project itself comes anew with every run, always to the same place.
echo /srv/payload > "$site/capprofile.pth"
printf '#!/opt/venv/bin/python\nfrom profiler.cli import main\n\nmain()\n' > "$venv/bin/capprofile"
printf '#!/opt/venv/bin/python\nimport sys\nimport pytest\n\nsys.exit(pytest.main())\n' > "$venv/bin/pytest"
chmod 755 "$venv/bin/capprofile" "$venv/bin/pytest"
# By hash, not by time: the files' times do not survive all copying.
chroot "$root" /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib

[ $# -gt 0 ] || exit 0
mkdir "$root/srv/prime"
cp "$payload/images.py" "$payload/userlands.py" "$root/srv/prime/"
ln "$@" "$root/srv/prime/" 2> /dev/null || cp "$@" "$root/srv/prime/"
cat > "$root/srv/prime/import" <<'IMPORT'
#!/bin/sh
set -eu
dockerd --bridge=none --iptables=false --ip6tables=false --ip-forward=false --storage-driver=overlay2 \
    --exec-opt native.cgroupdriver=cgroupfs > /tmp/dockerd.log 2>&1 &
engine=$!
tries=300
until docker info > /dev/null 2>&1; do
    if [ $((tries -= 1)) = 0 ] || ! kill -0 "$engine" 2> /dev/null; then
        tail -n 20 /tmp/dockerd.log >&2
        exit 1
    fi
    sleep 0.1
done
python3 -B /srv/prime/userlands.py import /srv/prime
kill "$engine"
wait "$engine" || true
IMPORT
# What Docker needs: a root that is a mount, the control group of devices, a /proc and a /run of its own.
unshare --mount --pid --fork --kill-child --net --ipc --uts sh -euc '
    root=$1
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t tmpfs run "$root/run"
    mount -t tmpfs tmp "$root/tmp"
    mount -t tmpfs sys "$root/sys"
    mkdir -p "$root/sys/fs/cgroup"
    mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
    exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 sh /srv/prime/import
' prime "$root" < /dev/null
rm -rf "$root/srv/prime"
