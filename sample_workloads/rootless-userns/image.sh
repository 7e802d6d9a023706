#!/bin/sh
set -eu
useradd --create-home --shell /bin/sh --uid 1000 alice
