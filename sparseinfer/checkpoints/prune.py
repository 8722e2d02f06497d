"""Prune a state_dict or a checkpoint file by magnitude, by threshold or at random."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sparseinfer.checkpoints.checkpoint import (
    WEIGHTS,
    Checkpoint,
    container_for,
    open_checkpoint,
    other_files,
    prepare_folder,
)
from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.prunable import Choice, choose, output_dim
from sparseinfer.checkpoints.selection import looks, masks, structure_of
from sparseinfer.checkpoints.sparse import save_sparse
from sparseinfer.files import staged_folder
from sparseinfer.progress import track
from sparseinfer.prune.structures import NM, Unstructured
from sparseinfer.prune.summary import NEARLY_ALL

__all__ = ["METHODS", "Pruned", "PrunedTensor", "Recipe", "prune_checkpoint", "prune_state_dict"]

METHODS = ("magnitude", "threshold", "random")
SCOPES = ("global", "layer")
SAVED_AS = ("dense", "sparse")


@dataclass(frozen=True)
class Recipe:
    """How to prune.

    Args:
        method: `magnitude` prunes the smallest |w|, `random` any, `threshold` each |w| <= amount.
        amount: a fraction (float, 0 <= amount < 1) or a count (int) of the weights; for blocks,
            filters and channels a fraction of them or a count of weights; the threshold for
            `threshold`; None for N:M, which sets it. Weights that are zero already count as pruned
            first.
        scope: `global` ranks all weights together, `layer` each tensor by itself; it changes
            nothing for `threshold`.
        structure: as `parse_structure` reads it: `unstructured`, N:M along input channels as `2:4`
            (2 of 4 kept), blocks as `4x1` (output rows x input columns), `filters`, `channels`.
        include, exclude: see `choose`.
        seed: of `random`.

    Raises:
        CheckpointError: an argument is out of range, or does not go with another.

    Example:
        >>> Recipe(amount=0.9).method
        'magnitude'
    """

    method: str = "magnitude"
    amount: float | int | None = None
    scope: str = "global"
    structure: str = "unstructured"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("scope", self.scope, SCOPES)
        structure = structure_of(self)
        amount = self.amount
        if isinstance(structure, NM):
            if self.method == "threshold":
                raise CheckpointError(
                    f"expected --method magnitude or random with {self.structure}, got threshold; "
                    "try --method magnitude"
                )
            if amount is not None:
                raise CheckpointError(
                    f"expected no --amount with {self.structure}, which sets it, got {amount}; "
                    "try without it"
                )
            return
        if amount is None:
            raise CheckpointError("expected an --amount, got none; try --amount 0.9")
        if self.method == "threshold":
            if not isinstance(structure, Unstructured):
                raise CheckpointError(
                    f"expected --structure unstructured with threshold, got {self.structure}; "
                    "try --method magnitude"
                )
            if not 0 <= amount < math.inf:
                raise CheckpointError(
                    f"expected a threshold of 0 or more, got {amount}; try --amount 0.01"
                )
        elif isinstance(amount, float) and not 0 <= amount < 1:
            raise CheckpointError(
                f"expected an amount of 0 <= amount < 1, or a count without a point, got {amount}; "
                "try --amount 0.9"
            )
        elif amount < 0:
            raise CheckpointError(f"expected a count of 0 or more, got {amount}; try --amount 0.9")


@dataclass(frozen=True)
class PrunedTensor:
    """A tensor of the checkpoint: was it pruned, why (not), its zeros before and after."""

    name: str
    shape: list[int]
    dtype: str
    pruned: bool
    reason: str
    elements: int
    zeros_before: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """The zeros of all elements, 0 to 1."""
        return self.zeros / max(1, self.elements)


@dataclass
class Pruned:
    """What was done: a row for each tensor, warnings, and where it was written (None: nowhere)."""

    rows: list[PrunedTensor]
    warnings: list[str] = field(default_factory=list)
    output: str | None = None

    @property
    def sparsity(self) -> float:
        """The zeros of all elements of the pruned tensors, 0 to 1; tied tensors count twice."""
        rows = [row for row in self.rows if row.pruned]
        return sum(row.zeros for row in rows) / max(1, sum(row.elements for row in rows))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, strings and numbers."""
        return {**asdict(self), "sparsity": self.sparsity}


def prune_state_dict(
    state: Mapping[str, Any], recipe: Recipe, progress: bool | None = False
) -> Pruned:
    """Prune a plain state_dict in place: tensors that share memory stay tied, and count once.

    Warns of each layer that it empties, or leaves less than 1% of.

    Raises:
        CheckpointError: a pattern matches nothing, nothing is prunable, a weight holds NaN or Inf,
            or the count exceeds the weights there are.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015 (magnitude); the amount rounds half to even, as torch.nn.utils.prune does.

    Example:
        >>> state = {"fc.weight": torch.tensor([[0.1, -2.0], [3.0, -0.2]])}
        >>> prune_state_dict(state, Recipe(amount=0.5)).sparsity
        0.5
        >>> state["fc.weight"].tolist()
        [[0.0, -2.0], [3.0, 0.0]]
    """
    choices = _spare(choose(state, recipe.include, recipe.exclude), state, recipe)
    weights: dict[object, Tensor] = {}
    for choice in choices:
        tensor = state[choice.name]
        if choice.taken:
            bad = int(tensor.numel() - torch.isfinite(tensor).sum())
            if bad:
                raise CheckpointError(
                    f"{choice.name}: expected finite weights, got {bad} NaN or Inf; "
                    f"try --exclude {choice.name}"
                )
            tensor = tensor.detach()
            memory = tensor.data_ptr(), tensor.shape, tensor.stride()
            # As a structure sees it, output rows first: a view of the same memory.
            rows_first = tensor.transpose(0, output_dim(choice.name, state))
            weights.setdefault(memory, rows_first)
    tensors = list(weights.values())
    _check_count(recipe, [tensor.numel() for tensor in tensors])
    before = {choice.name: _zeros(state[choice.name]) for choice in choices}
    bar = track(count(), looks(tensors, recipe), "pruning", progress)
    ticks = cast("Generator[int, None, None]", bar)
    with torch.no_grad(), closing(ticks):
        for tensor, mask in zip(tensors, masks(tensors, recipe, ticks), strict=True):
            tensor.masked_fill_(mask, 0)
    rows, emptied = [], []
    for choice in choices:
        row = _row(choice, state[choice.name], before[choice.name])
        rows.append(row)
        if not row.pruned or row.zeros == row.zeros_before:
            continue
        if row.zeros == row.elements:
            what = f"pruning emptied {row.name}: all its {row.elements} weights are zero"
        elif row.sparsity > NEARLY_ALL:
            left = row.elements - row.zeros
            what = f"pruning left {left:,} of the {row.elements:,} weights of {row.name}"
        else:
            continue
        emptied.append(f"{what}; try a smaller --amount, or --exclude it")
    for text in emptied:
        warnings.warn(text, stacklevel=2)
    return Pruned(rows, emptied)


def prune_checkpoint(
    path: str | os.PathLike[str],
    recipe: Recipe,
    output: str | os.PathLike[str] | None = None,
    *,
    in_place: bool = False,
    format: str = "dense",
    key: str | None = None,
    progress: bool | None = False,
) -> Pruned:
    """Prune a saved checkpoint without its model's code; the input stays unless `in_place`.

    Read are files by torch.save (weights_only), safetensors, and folders of shards with their
    index.json. Masks and compressed weights in it are applied first. With neither `output` nor
    `in_place` nothing is written. The output's suffix chooses its container; entries beside the
    state_dict (epoch, optimizer) are kept in one by torch.save. `format` `sparse` writes with
    `save_sparse`. The output appears whole or not at all.

    Raises:
        CheckpointError: see `open_checkpoint` and `prune_state_dict`; the output is the input.
        OSError: the output cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "model.pth")
        >>> torch.save({"fc.weight": torch.randn(8, 8)}, path)
        >>> prune_checkpoint(path, Recipe(amount=0.75), path.with_name("pruned.pth")).sparsity
        0.75
    """
    _one_of("format", format, SAVED_AS)
    checkpoint = open_checkpoint(path, key)
    target = _target(checkpoint, output, in_place, format)
    plain = checkpoint.make_plain()
    state = {name: value for name, value, _ in checkpoint.items()}
    result = prune_state_dict(state, recipe, progress)
    taken = [row for row in result.rows if row.pruned]
    if recipe.amount and not any(row.zeros for row in taken):
        raise CheckpointError(
            f"expected an amount that prunes something, got {recipe.amount}, which prunes none of "
            f"the {sum(row.elements for row in taken)} weights; try --amount 0.9"
        )
    result.warnings += plain.notes
    if target is None:
        return result
    container = container_for(target, checkpoint.shards[0].container)
    if checkpoint.others and (format == "sparse" or container == "safetensors"):
        result.warnings.append(
            f"safetensors holds tensors only, so this was left out: {', '.join(checkpoint.others)}"
        )
    if format == "sparse":
        if checkpoint.folder is not None and target.suffix != ".safetensors":
            prepare_folder(target)
            with staged_folder(target) as folder:
                for file in other_files(checkpoint.folder):
                    shutil.copyfile(file, folder / file.name)
                save_sparse(checkpoint.tensors, folder, config=checkpoint.config)
        else:
            save_sparse(checkpoint.tensors, target, config=checkpoint.config)
    else:
        checkpoint.write(target)
    result.output = str(target)
    return result


def _target(
    checkpoint: Checkpoint, output: str | os.PathLike[str] | None, in_place: bool, format: str
) -> Path | None:
    if in_place and output is not None:
        raise CheckpointError("expected --in-place or an output, got both; try one of them")
    if in_place:
        if format == "sparse":
            raise CheckpointError("expected an output for sparse, got --in-place; try -o OUT")
        return checkpoint.path
    if output is None:
        return None
    target = Path(output)
    read = [checkpoint.path, *(shard.path for shard in checkpoint.shards)]
    for written in (target, target / WEIGHTS):
        if written.exists() and any(os.path.samefile(written, path) for path in read):
            raise CheckpointError(
                f"{target}: expected an output other than the input, got the same; "
                "try another name, or --in-place"
            )
    return target


def _spare(choices: list[Choice], state: Mapping[str, Any], recipe: Recipe) -> list[Choice]:
    """The choices, without the weights in which N:M finds nothing to prune."""
    structure = structure_of(recipe)
    if not isinstance(structure, NM):
        return choices
    made = []
    for choice in choices:
        if choice.taken:
            rows_first = state[choice.name].transpose(0, output_dim(choice.name, state))
            reason = structure.spared(rows_first.shape)
            choice = replace(choice, taken=False, reason=reason) if reason else choice
        made.append(choice)
    return made


def _check_count(recipe: Recipe, sizes: list[int]) -> None:
    if recipe.method == "threshold" or not isinstance(recipe.amount, int):
        return
    least = sum(sizes) if recipe.scope == "global" else min(sizes)
    if recipe.amount >= least:
        where = "" if recipe.scope == "global" else " in the smallest layer"
        raise CheckpointError(
            f"expected a count below the {least} weights there are{where}, got {recipe.amount}; "
            "try a fraction such as 0.9"
        )


def _row(choice: Choice, tensor: Tensor, before: int) -> PrunedTensor:
    return PrunedTensor(
        choice.name, list(choice.shape), choice.dtype, choice.taken, choice.reason,
        tensor.numel(), before, _zeros(tensor),
    )  # fmt: skip


def _zeros(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return 0
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        tensor = tensor.float()
    return tensor.numel() - int(torch.count_nonzero(tensor))


def _one_of(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise CheckpointError(
            f"expected a {what} of {', '.join(known)}, got {value!r}; try {known[0]}"
        )
