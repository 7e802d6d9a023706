#!/bin/sh
# A package as games and mail servers ship them: a score file of another owner, a setgid program.
set -eu
mkdir -p /tmp/scores/DEBIAN /tmp/scores/usr/games /tmp/scores/var/games/scores
cat > /tmp/scores/DEBIAN/control << 'END'
Package: scores
Version: 1
Architecture: all
Maintainer: nobody <nobody@localhost>
Description: a setgid program and the file that it may write
END
cat > /tmp/scores/DEBIAN/postinst << 'END'
#!/bin/sh
set -e
touch /var/games/scores/today
chown games:games /var/games/scores/today
END
printf '#!/bin/sh\necho "score: 0"\n' > /tmp/scores/usr/games/score
echo 0 > /tmp/scores/var/games/scores/best
chmod 755 /tmp/scores/DEBIAN/postinst
chown -R games:games /tmp/scores/var/games/scores
chgrp games /tmp/scores/usr/games/score
chmod 2755 /tmp/scores/usr/games/score
chmod 660 /tmp/scores/var/games/scores/best
dpkg-deb --build /tmp/scores /srv/scores.deb
rm -r /tmp/scores
