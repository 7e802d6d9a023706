"""Reruns, compares, refines, proves. Knows recipes, not traces."""
