#!/bin/sh
# Captures one packet on the loopback interface. tcpdump gives up root once it has its packet socket.
set -eu
: > /tmp/words
timeout 10 tcpdump --immediate-mode -i lo -c 1 -n -l udp port 4242 > /tmp/packets 2> /tmp/words &
tcpdump=$!
until grep -q 'listening on' /tmp/words; do
    kill -0 "$tcpdump" 2> /dev/null || { cat /tmp/words >&2; exit 1; }
    busybox usleep 10000
done
bash -c 'echo hello > /dev/udp/127.0.0.1/4242'
wait "$tcpdump" || { cat /tmp/words >&2; exit 1; }
grep 'UDP, length 6' /tmp/packets
