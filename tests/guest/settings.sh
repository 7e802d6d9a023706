# What build.sh, boot.sh and run.sh share. Sourced, with $here set to this directory.
# shellcheck shell=sh disable=SC2034 # used by those who source it
SUITE=trixie
REPOSITORY=$(cd "$here/../.." && pwd)
CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/capprofile/guest

say() { echo "guest: $*" >&2; }
