#!/bin/sh
# Starts nginx as its package does, asks it for one page over loopback, and stops it.
set -eu
nginx
busybox wget -q -O - http://127.0.0.1/ | grep -i '<title>'
master=$(cat /run/nginx.pid)
nginx -s quit
while kill -0 "$master" 2> /dev/null; do busybox usleep 10000; done
