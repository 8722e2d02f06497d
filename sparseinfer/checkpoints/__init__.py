"""Saved models: prune them without their code, read what others pruned, store them small."""

from sparseinfer.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.prunable import Choice, choose
from sparseinfer.checkpoints.prune import Pruned, Recipe, prune_checkpoint, prune_state_dict
from sparseinfer.checkpoints.sparse import Saved, load_sparse, load_sparse_into, save_sparse

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
