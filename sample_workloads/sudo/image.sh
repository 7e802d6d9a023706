#!/bin/sh
set -eu
useradd --create-home --shell /bin/sh --uid 1000 alice
echo 'alice ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/alice
chmod 440 /etc/sudoers.d/alice
