"""The native library: this is the only module that imports it."""

from sparseinfer._C import (
    Weights,
    cpu_features,
    formats,
    isas,
    pack,
    release_scratch,
    rows,
    scratch_bytes,
    seal,
    select,
    source_hash,
    targets,
    threads_backend,
    version,
)

__all__ = [
    "Weights",
    "cpu_features",
    "formats",
    "isas",
    "pack",
    "release_scratch",
    "rows",
    "scratch_bytes",
    "seal",
    "select",
    "source_hash",
    "targets",
    "threads_backend",
    "version",
]
