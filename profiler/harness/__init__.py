"""Where a workload runs: Docker or the embedded sandbox. The only room that talks to an engine."""
