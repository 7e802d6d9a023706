#!/bin/sh
# Builds a container image inside a container, without a daemon: buildah, whose steps run in a chroot.
set -eu
export BUILDAH_ISOLATION=chroot
buildah build --quiet --network=none --tag made /srv/context
container=$(buildah from --pull-never made)
tree=$(buildah mount "$container")
content=$(cat "$tree/made")
owner=$(stat -c '%u:%g' "$tree/made")
buildah umount "$container" > /dev/null
echo "the image holds: $content, owned by $owner"
test "$content $owner" = 'built 1:1'
