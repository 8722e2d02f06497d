"""Saved models: prune them without their code, read what others pruned, store them small."""

import importlib.util
from types import ModuleType

from sparseinfer.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.prunable import Choice, choose
from sparseinfer.checkpoints.prune import Pruned, Recipe, prune_checkpoint, prune_state_dict
from sparseinfer.checkpoints.sparse import Saved, load_sparse, load_sparse_into, save_sparse
from sparseinfer.convert.pretrained import LOADING
from sparseinfer.when_imported import when_imported

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Choice",
    "Pruned",
    "Recipe",
    "Saved",
    "choose",
    "load_sparse",
    "load_sparse_into",
    "open_checkpoint",
    "prune_checkpoint",
    "prune_state_dict",
    "save_sparse",
]


def _register(quantizers: ModuleType) -> None:
    """Let transformers load sparse models, once the caller has imported it."""
    if importlib.util.find_spec(LOADING) is not None:
        importlib.import_module("sparseinfer.checkpoints.hf_quantizer")


when_imported("transformers.quantizers.auto", _register)
