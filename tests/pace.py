"""How many times longer than on a real machine things may take here: the emulated guest (tests/guest) says so."""

import os

SLOWER = float(os.environ.get("CAPPROFILE_TESTS_SLOWER", "1"))
