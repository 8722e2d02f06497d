"""sparseinfer: pruned neural networks that run faster and take less memory.

import sparseinfer

sparse = sparseinfer.convert_to_sparse(model, example_inputs=x)
print(sparseinfer.report(sparse))
"""

import logging as _logging

# Silent unless the application listens, or SPARSEINFER_VERBOSE asks (sparseinfer.verbose).
_logging.getLogger(__name__).addHandler(_logging.NullHandler())

try:
    from sparseinfer._C import version as _version
    from sparseinfer.attention import SparseMultiheadAttention
    from sparseinfer.checkpoints import load_sparse, load_sparse_into, save_sparse
    from sparseinfer.convert import convert_to_sparse
    from sparseinfer.formats import pack, unpack
    from sparseinfer.load import load_converted
    from sparseinfer.modules import SparseConv1d, SparseConv2d, SparseLinear
    from sparseinfer.recurrent import SparseGRU, SparseLSTM, SparseRNN
    from sparseinfer.report import LayerReport, Report, report
    from sparseinfer.scratch import release_scratch, scratch_bytes
    from sparseinfer.transposed import SparseConvTranspose1d, SparseConvTranspose2d

    __version__ = _version()
except (ImportError, OSError) as _error:
    # `sparseinfer doctor` has to start to say what does not load; all else says so when it is used.
    _reason = f"{type(_error).__name__}: {_error}"

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'sparseinfer' has no attribute {name!r}")
        raise ImportError(f"sparseinfer does not load: {_reason}; try sparseinfer doctor")


__all__ = [
    "LayerReport",
    "Report",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "SparseGRU",
    "SparseLSTM",
    "SparseLinear",
    "SparseMultiheadAttention",
    "SparseRNN",
    "__version__",
    "convert_to_sparse",
    "load_converted",
    "load_sparse",
    "load_sparse_into",
    "pack",
    "release_scratch",
    "report",
    "save_sparse",
    "scratch_bytes",
    "unpack",
]
