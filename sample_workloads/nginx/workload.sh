#!/bin/sh
# Starts nginx as its package does, asks it for one page over loopback, and stops it.
set -eu
nginx
timeout 3 busybox wget -q -O - http://127.0.0.1/ | grep -i '<title>'
master=$(cat /run/nginx.pid)
nginx -s quit
for _ in $(seq 300); do
    kill -0 "$master" 2> /dev/null || exit 0
    busybox usleep 10000
done
echo 'nginx did not stop' >&2
exit 1
