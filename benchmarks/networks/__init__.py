"""Whole networks, ours beside other engines: `python -m benchmarks.networks`."""
