#!/bin/sh
# Tries to load a kernel module that does not exist, reports, and carries on: as many init scripts do.
set -eu
if modprobe no_such_module 2> /tmp/words; then echo 'modprobe: loaded'; else echo "modprobe: $(cat /tmp/words)"; fi
echo 'not a module' > /tmp/no_such_module.ko
if insmod /tmp/no_such_module.ko 2> /tmp/words; then echo 'insmod: loaded'; else echo "insmod: $(cat /tmp/words)"; fi
echo 'carrying on without the module'
