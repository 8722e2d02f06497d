"""Pruning: criteria, structures, schedules, and masks that hold while a model trains.

`Pruner` is the way in; `l1_unstructured` and its like are torch.nn.utils.prune's functions with
exact counts. `scan_sensitivity` (module `sensitivity`) finds ratios for each layer, `fine_tune` and
`distillation_loss` (`recover`) win accuracy back, `lottery_ticket` (`lottery`) rewinds,
`apply_masks` (`merge`) keeps zeros through a merge. `sparseinfer.prune.trainer` fits transformers'
Trainer.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

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
from sparseinfer.prune.summary import Summary

if TYPE_CHECKING:
    from sparseinfer.prune import lottery, merge, recover, sensitivity
    from sparseinfer.prune.lottery import lottery_ticket
    from sparseinfer.prune.merge import apply_masks, masks_of, merge_lora
    from sparseinfer.prune.recover import (
        distillation_loss,
        fine_tune,
        prune_to_floor,
        reestimate_batchnorm,
    )
    from sparseinfer.prune.sensitivity import Sensitivity, scan_sensitivity

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
    "Sensitivity",
    "Structure",
    "Summary",
    "Taylor",
    "Unstructured",
    "apply_masks",
    "custom_from_mask",
    "distillation_loss",
    "fine_tune",
    "global_unstructured",
    "is_pruned",
    "l1_unstructured",
    "ln_structured",
    "lottery",
    "lottery_ticket",
    "masks_of",
    "merge",
    "merge_lora",
    "prune_to_floor",
    "random_structured",
    "random_unstructured",
    "recover",
    "reestimate_batchnorm",
    "remove",
    "scan_sensitivity",
    "sensitivity",
    "taylor",
    "threshold_unstructured",
]

# They measure converted models, so they need what itself needs this package: loaded when asked for.
_LATER = {
    "lottery": ("lottery_ticket",),
    "merge": ("apply_masks", "masks_of", "merge_lora"),
    "recover": ("distillation_loss", "fine_tune", "prune_to_floor", "reestimate_batchnorm"),
    "sensitivity": ("Sensitivity", "scan_sensitivity"),
}


def __getattr__(name: str) -> object:
    for module, names in _LATER.items():
        if name == module or name in names:
            found = _import_module(f"{__name__}.{module}")
            return found if name == module else getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
