#!/bin/sh
# Takes the container's network interface down, and looks whether it is.
set -eu
ip link set eth0 down
ip -o link show eth0 | grep 'state DOWN'
