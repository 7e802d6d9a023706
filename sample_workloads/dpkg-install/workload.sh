#!/bin/sh
# Installs a local package, and looks whether owners, groups and the setgid bit are as the package says.
set -eu
dpkg --install /srv/scores.deb
test "$(stat -c '%U:%G %a' /usr/games/score)" = 'root:games 2755'
test "$(stat -c '%U:%G %a' /var/games/scores/best)" = 'games:games 660'
test "$(stat -c '%U:%G' /var/games/scores/today)" = 'games:games'
dpkg-query --show --showformat '${Status}\n' scores
