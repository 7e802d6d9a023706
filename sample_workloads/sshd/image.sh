#!/bin/sh
# An ordinary user with a key pair: the private half belongs to root, who will log in.
set -eu
useradd --create-home --shell /bin/sh alice
ssh-keygen -q -t ed25519 -N '' -f /root/key
install -d -o alice -g alice -m 700 /home/alice/.ssh
install -o alice -g alice -m 600 /root/key.pub /home/alice/.ssh/authorized_keys
