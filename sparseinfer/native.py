"""The native library: this is the only module that imports it."""

from sparseinfer._C import (
    Weights,
    info,
    isas,
    pack,
    release_scratch,
    rows,
    scratch_bytes,
    seal,
    select,
    source_hash,
    threads_backend,
    unpack,
    version,
)

__all__ = [
    "Weights",
    "info",
    "isas",
    "pack",
    "release_scratch",
    "rows",
    "scratch_bytes",
    "seal",
    "select",
    "source_hash",
    "threads_backend",
    "unpack",
    "version",
]
