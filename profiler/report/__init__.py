"""One renderer a format: manifest, table, docker arguments, systemd and setpriv lines, explanations."""
