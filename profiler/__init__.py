"""capprofile: the least privileges that a workload needs, found, reasoned and proved."""

__version__ = "0.1.0"
