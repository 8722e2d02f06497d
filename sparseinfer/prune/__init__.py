"""Pruning: criteria, structures, schedules, and masks that hold while a model trains.

`Pruner` is the way in; `l1_unstructured` and its like are torch.nn.utils.prune's functions with
exact counts. `sparseinfer.prune.trainer` fits transformers' Trainer.
"""

from sparseinfer.prune.criteria import Criterion, Magnitude, Random, Taylor, taylor
from sparseinfer.prune.functional import (
    custom_from_mask,
    global_unstructured,
    is_pruned,
    l1_unstructured,
    ln_structured,
    random_structured,
    random_unstructured,
    remove,
    threshold_unstructured,
)
from sparseinfer.prune.pruner import Pruner
from sparseinfer.prune.schedules import (
    ConstantSparsity,
    Iterative,
    OneShot,
    PolynomialDecay,
    Schedule,
)
from sparseinfer.prune.structures import NM, Block, Channels, Filters, Structure, Unstructured

__all__ = [
    "NM",
    "Block",
    "Channels",
    "ConstantSparsity",
    "Criterion",
    "Filters",
    "Iterative",
    "Magnitude",
    "OneShot",
    "PolynomialDecay",
    "Pruner",
    "Random",
    "Schedule",
    "Structure",
    "Taylor",
    "Unstructured",
    "custom_from_mask",
    "global_unstructured",
    "is_pruned",
    "l1_unstructured",
    "ln_structured",
    "random_structured",
    "random_unstructured",
    "remove",
    "taylor",
    "threshold_unstructured",
]
