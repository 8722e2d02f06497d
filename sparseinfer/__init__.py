"""sparseinfer: pruned neural networks that run faster and take less memory.

import sparseinfer

sparse = sparseinfer.convert_to_sparse(model, example_inputs=x)
print(sparseinfer.report(sparse))

convert_to_sparse           a pruned model in, the same model out, sparse where that is faster
report                      what was decided for every layer, and why: a Report
Report, LayerReport         the report, and one layer of it
load_converted              the state_dict of a converted model, into a new one
save_sparse                 weights of a pruned model as a compressed-tensors checkpoint
load_sparse                 such a checkpoint as a state_dict
load_sparse_into            such a checkpoint into a model
pack, unpack                a weight as a packed buffer, and back
SparseLinear                the sparse layers, by the dense ones whose place they take:
SparseConv1d, SparseConv2d, SparseConvTranspose1d, SparseConvTranspose2d,
SparseLSTM, SparseGRU, SparseRNN, SparseMultiheadAttention
sparseinfer.prune           pruning while training: Pruner, schedules, criteria, sensitivity

On the command line: sparseinfer --help. Where something does not load: sparseinfer doctor.
"""

import logging as _logging
import sys as _sys

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
    from sparseinfer.transposed import SparseConvTranspose1d, SparseConvTranspose2d

    __version__ = _version()
except (ImportError, OSError, ValueError) as _error:
    # `sparseinfer doctor` has to start to say what does not load; all else says so when it is used.
    # A SPARSEINFER_ISA that cannot be obeyed is said at once, as nothing should run otherwise.
    if isinstance(_error, ValueError) and _sys.argv[1:2] != ["doctor"]:
        raise
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
    "report",
    "save_sparse",
    "unpack",
]
