"""What the kernel and the engine say of themselves: capability checks, the engine's own filter, host probes."""
