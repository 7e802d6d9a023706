"""Follows one workload from its first instruction to its last and returns a `Trace`. Knows no capability's meaning."""
