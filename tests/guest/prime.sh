#!/bin/sh
# Runs once in the new guest: makes the tests' Python environment and imports the test images' userlands, without network.
set -eu
cd /srv/payload
. tests/guest/stream.sh
exec >&3 2>&1
trap 'code=$?; [ "$code" = 0 ] || finish "$code"' EXIT

python3 -m venv --without-pip /opt/venv
cp -r site-packages/. /opt/venv/lib/python3.*/site-packages/
# The project itself comes anew with every run, always to the same place.
echo /srv/payload > "$(echo /opt/venv/lib/python3.*/site-packages)/capprofile.pth"
printf '#!/opt/venv/bin/python\nfrom profiler.cli import main\n\nmain()\n' > /opt/venv/bin/capprofile
printf '#!/opt/venv/bin/python\nimport sys\nimport pytest\n\nsys.exit(pytest.main())\n' > /opt/venv/bin/pytest
chmod 755 /opt/venv/bin/capprofile /opt/venv/bin/pytest
/opt/venv/bin/python -m compileall -q /opt/venv/lib/python3.*/site-packages/_pytest /opt/venv/lib/python3.*/site-packages/rich \
    /opt/venv/lib/python3.*/site-packages/docker /opt/venv/lib/python3.*/site-packages/pyroute2
say 'the Python environment is made'
wait_for_docker
python3 tests/guest/userlands.py import .
say 'the test images are imported'
rm -rf /srv/payload
finish 0
