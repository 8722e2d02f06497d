"""Measurements of sparseinfer against other engines, each in a process of its own."""
