#!/bin/sh
# Compiles a program and runs it.
set -eu
mkdir -p /tmp/hello
cd /tmp/hello
printf '#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n' > hello.c
printf 'hello: hello.c\n\tgcc -O2 -o hello hello.c\n' > Makefile
make --silent
./hello | grep hello
