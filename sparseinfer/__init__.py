"""sparseinfer: pruned neural networks that run faster and take less memory.

import sparseinfer

sparse = sparseinfer.convert_to_sparse(model, example_inputs=x)
print(sparseinfer.report(sparse))

convert_to_sparse           a pruned model in, the same model out, sparse where that is faster
report                      what was decided for every layer, and why: a Report
Report, LayerReport         the report, and one layer of it
compile, load_engine, Engine a pruned model as one plan without Python between its layers; its file
UnsupportedOperators        what a model holds that an engine has not
to_dense                    a converted model in, torch's own layers out
calibrate                   scales of a model's inputs, for convert_to_sparse(..., weights="int8")
add_fake_quant, remove_fake_quant   a model that learns to stand int8, and back
from_quantized              a model that torch quantised in, sparse int8 layers out
load_converted              the state_dict of a converted model, into a new one
save_sparse                 weights of a pruned model as a compressed-tensors checkpoint
load_sparse                 such a checkpoint as a state_dict
load_sparse_into            such a checkpoint into a model
pack, unpack                a weight as a packed buffer, and back
SparseLinear                the sparse layers, by the dense ones whose place they take:
SparseConv1d, SparseConv2d, SparseConvTranspose1d, SparseConvTranspose2d,
SparseLSTM, SparseGRU, SparseRNN, SparseLSTMCell, SparseGRUCell, SparseRNNCell,
SparseMultiheadAttention
scratch_bytes, release_scratch   memory that the kernels keep between calls, and giving it back
sparseinfer.prune           pruning while training: Pruner, schedules, criteria, sensitivity

On the command line: sparseinfer --help. Where something does not load: sparseinfer doctor.
"""

# ruff: noqa: F405

import logging as _logging
import sys as _sys

# Silent unless the application listens, or SPARSEINFER_VERBOSE asks (sparseinfer.kernels.verbose).
_logging.getLogger(__name__).addHandler(_logging.NullHandler())


def _runs_as_command() -> bool:
    """Whether this is the program `sparseinfer`, or `python -m sparseinfer`."""
    program = _sys.argv[0] if getattr(_sys, "argv", None) else ""
    name = program.replace("\\", "/").rpartition("/")[2].removesuffix(".exe")
    return name == "sparseinfer" or (name == "-m" and "sparseinfer" in _sys.orig_argv)


__all__ = [
    "Engine",
    "LayerReport",
    "Report",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "SparseGRU",
    "SparseGRUCell",
    "SparseLSTM",
    "SparseLSTMCell",
    "SparseLinear",
    "SparseMultiheadAttention",
    "SparseRNN",
    "SparseRNNCell",
    "UnsupportedOperators",
    "__version__",
    "add_fake_quant",
    "calibrate",
    "compile",
    "convert_to_sparse",
    "from_quantized",
    "load_converted",
    "load_engine",
    "load_sparse",
    "load_sparse_into",
    "pack",
    "release_scratch",
    "remove_fake_quant",
    "report",
    "save_sparse",
    "scratch_bytes",
    "to_dense",
    "unpack",
]
# Type checkers read it above. In the module help() would document every class that it names, with
# all that nn.Module has: twelve thousand lines.
_PUBLIC = frozenset(__all__)
del __all__

_reason = ""
if not _runs_as_command():
    # Importing registers the operations that torch.export.load and unpickling look for.
    try:
        from sparseinfer.api import *  # noqa: F403
    except (ImportError, OSError) as _error:
        # `sparseinfer doctor` has to start to say what does not load; all else says so when used.
        _reason = f"{type(_error).__name__}: {_error}"


def __getattr__(name: str) -> object:
    # The command, whose --help and --version need no torch, comes here when it computes.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sparseinfer' has no attribute {name!r}")
    reason = _reason
    if not reason:
        try:
            from sparseinfer import api

            return getattr(api, name)
        except (ImportError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
    raise ImportError(f"sparseinfer does not load: {reason}; try sparseinfer doctor")
