"""From a trace to requirements, from requirements to the least dangerous recipe."""
