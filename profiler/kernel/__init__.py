"""The only room that imports ctypes or ptrace, or packs a kernel structure. Knows no capability's meaning."""
