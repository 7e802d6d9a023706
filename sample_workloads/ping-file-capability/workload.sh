#!/bin/sh
# As Debian's own did for long, this ping carries cap_net_raw as a file capability. execve(2) refuses to start it where the
# bounding set lacks that capability, though the ICMP socket that ping then uses would be open to everybody.
set -eu
getcap /usr/bin/ping | grep cap_net_raw
ping -c 1 -W 2 127.0.0.1 | grep '1 received'
