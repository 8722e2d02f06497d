"""Whole networks as one plan: `sparseinfer.compile`, and the files that it saves.

`from_torch` makes a `Graph` of a model; `passes` change it, a file each; `file` writes it as bytes,
which the native library reads, checks, plans and runs; `engine` is what a user calls.
"""
