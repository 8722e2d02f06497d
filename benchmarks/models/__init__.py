"""Whole networks, pruned and converted here: outputs compared, then timed against dense."""
