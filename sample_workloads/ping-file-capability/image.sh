#!/bin/sh
# Debian's package sets it up to Debian 12; later ones leave ping to net.ipv4.ping_group_range.
set -eu
setcap cap_net_raw=ep /usr/bin/ping
