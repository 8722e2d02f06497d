"""Measurements of sparseinfer against dense PyTorch, taken interleaved in one process."""
