#!/bin/sh
# Starts sshd, logs in once over loopback as an ordinary user with a key, and stops it.
set -eu
mkdir -p /run/sshd
/usr/sbin/sshd -o PidFile=/run/sshd.pid -E /tmp/sshd.log
for _ in $(seq 300); do test -s /run/sshd.pid && break; busybox usleep 10000; done
answer=$(timeout 8 ssh -n -i /root/key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
    alice@127.0.0.1 'id -un') || { cat /tmp/sshd.log >&2; exit 1; }
echo "logged in as $answer"
kill "$(cat /run/sshd.pid)"
test "$answer" = alice
