"""Which tensors of a state_dict are weights to prune, told without the model's code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.tensors import is_plain
from sparseinfer.prune.names import matches

__all__ = ["Choice", "choose", "output_dim"]

_WEIGHT = re.compile(
    r"^(weight|weight_(ih|hh|hr)(_l\d+(_reverse)?)?|in_proj_weight|[qkv]_proj_weight)$"
)
"""Names of the weights of Linear, convolutions, RNNs, their cells, and MultiheadAttention."""

_NORM = re.compile(r"(^|_)([a-z]*norm[a-z]*|bn|ln|gn)(_?\d+|_[a-z])?$", re.IGNORECASE)
_EMBEDDING = re.compile(
    r"embed|^(wte|wpe|emb|shared|tokens?_?emb|pos_?emb|relative_attention_bias)\d*$", re.IGNORECASE
)
_HEAD = re.compile(r"^(lm_head|embed_out|decoder|output|output_projection|generator|proj_out)$")

_VOCABULARY_ROWS = 8000
_VOCABULARY_RATIO = 8
"""A matrix without a bias of that many rows, and so many times more than columns, is taken for a
vocabulary: an embedding, or the output layer that mirrors it."""

_SAMPLES = 1024

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Choice:
    """Whether a tensor is pruned, and why (not). `forced` where --include overrode a guess."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    taken: bool
    reason: str
    forced: bool = False


def choose(
    entries: Mapping[str, Any], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[Choice]:
    """Decide for every tensor of a plain state_dict, in order, whether it is a weight to prune.

    Taken are weights of linear layers, convolutions, RNNs and attention. Never taken are tensors of
    one dimension (biases, norms, scales), integers, and norms with running statistics. Left by
    their names or shapes are other norms, embeddings and output layers tied to one.

    `include` and `exclude` are names of tensors, of layers or of modules ("encoder" takes all
    within it), or globs of them, as a `Pruner` reads them. With `include` only what matches is
    taken; a pattern that matches nothing but tensors left by their names or shapes takes those.
    `exclude` comes last, and leaves what is tied to a match, too.

    Raises:
        CheckpointError: a pattern matches no tensor, or nothing is left to prune.

    Example:
        >>> state = {"fc.weight": torch.ones(2, 2), "bn.weight": torch.ones(2)}
        >>> [choice.taken for choice in choose(state)]
        [True, False]
    """
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            "expected tensors to prune, got none; try torch.save(model.state_dict(), path)"
        )
    guesses = _Guesses(tensors)
    verdicts = {name: guesses.verdict(name) for name in tensors}
    patterns = {pattern: _matched(pattern, tensors) for pattern in (*include, *exclude)}
    wanted: dict[str, bool] = {}
    for pattern in include:
        matched = patterns[pattern]
        overrides = not any(verdicts[name].taken for name in matched)
        for name in matched:
            wanted[name] = wanted.get(name, False) or overrides
    excluded = {name for pattern in exclude for name in patterns[pattern]}
    # Zeros in the one would be zeros in the other.
    spared = {_memory(tensors[name]): name for name in excluded}
    choices = []
    for name, tensor in tensors.items():
        verdict = verdicts[name]
        taken, reason, forced = verdict.taken, verdict.reason, False
        if include and name not in wanted and taken:
            taken, reason = False, "no --include matches it"
        elif wanted.get(name) and verdict.guessed and not taken:
            taken, reason, forced = True, f"--include, though {reason}", True
        if name in excluded and taken:
            taken, reason, forced = False, "--exclude matches it", False
        elif taken and _memory(tensor) in spared:
            other = spared[_memory(tensor)]
            taken, reason, forced = False, f"tied to {other}, which --exclude matches", False
        kind = str(tensor.dtype).removeprefix("torch.")
        choices.append(Choice(name, tuple(tensor.shape), kind, taken, reason, forced))
    if not any(choice.taken for choice in choices):
        left = next((c for c in choices if len(c.shape) > 1), choices[0])
        raise CheckpointError(
            f"expected weights to prune, got none among {len(choices)} tensors "
            f"({left.name}: {left.reason}); try --include with a name"
        )
    return choices


def output_dim(name: str, entries: Mapping[str, Any]) -> int:
    """The dimension of a weight's output rows: 0, or 1 where its bias has as many elements.

    So are transposed convolutions and transformers' Conv1D (GPT-2) told apart from other layers, as
    far as their files tell: not where a weight is square or has no bias.

    Example:
        >>> state = {"c_attn.weight": torch.ones(4, 12), "c_attn.bias": torch.ones(12)}
        >>> output_dim("c_attn.weight", state)
        1
    """
    layer, _, own = name.rpartition(".")
    bias = entries.get(f"{layer}.bias".lstrip("."))
    if own != "weight" or not isinstance(bias, Tensor) or bias.dim() != 1:
        return 0
    rows, columns = entries[name].shape[:2]
    return int(bias.numel() == columns != rows)


@dataclass(frozen=True)
class _Verdict:
    taken: bool
    reason: str
    guessed: bool = False


class _Guesses:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        tables = [name for name in tensors if self._is_embedding(name)]
        self.tables = frozenset(tables)
        self.table_memory = {_memory(tensors[name]): name for name in tables}
        # Containers without shared memory hold a tied matrix twice. Each output layer is compared
        # with one table at most, however many a hostile file has.
        self.table_sample = {_sample(tensors[name]): name for name in reversed(tables)}

    def verdict(self, name: str) -> _Verdict:
        tensor = self.tensors[name]
        layer, _, own = name.rpartition(".")
        last = layer.rpartition(".")[2]
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            return _Verdict(False, "not a plain dense tensor")
        if tensor.dtype not in _FLOATS:
            return _Verdict(False, "no magnitudes to rank")
        if f"{layer}.running_mean".lstrip(".") in self.tensors:
            return _Verdict(False, "norm with statistics")
        if tensor.dim() < 2:
            return _Verdict(False, "one dimension")
        if own.startswith("bias"):
            return _Verdict(False, "a bias")
        if tensor.numel() == 0:
            return _Verdict(False, "no elements")
        bias = self.tensors.get(f"{layer}.bias".lstrip("."))
        if own == "weight" and bias is not None and bias.shape == tensor.shape:
            return _Verdict(False, "norm by its bias")
        if ".parametrizations." in f".{name}":
            reason = "of a parametrization without its mask (torch.ao: squash_mask before saving)"
            return _Verdict(False, reason)
        if not _WEIGHT.match(own):
            return _Verdict(False, "not named as a layer's weight", guessed=True)
        if _NORM.search(last):
            return _Verdict(False, "norm by its name", guessed=True)
        if name in self.tables:
            return _Verdict(False, "an embedding by its name", guessed=True)
        table = self._tied_to(name, last)
        if table is not None:
            return _Verdict(False, f"tied to the embedding {table}", guessed=True)
        rows, columns = tensor.shape[0], tensor[0].numel()
        if (
            tensor.dim() == 2
            and bias is None
            and rows >= max(_VOCABULARY_ROWS, _VOCABULARY_RATIO * columns)
        ):
            return _Verdict(False, f"a vocabulary by its shape, {rows} x {columns}", guessed=True)
        return _Verdict(True, "a layer's weight")

    def _is_embedding(self, name: str) -> bool:
        layer, _, own = name.rpartition(".")
        # A patch embedding is a convolution and a time embedding has a bias: both are pruned.
        return (
            own == "weight"
            and self.tensors[name].dim() == 2
            and f"{layer}.bias" not in self.tensors
            and bool(_EMBEDDING.search(layer.rpartition(".")[2]))
        )

    def _tied_to(self, name: str, last: str) -> str | None:
        tensor = self.tensors[name]
        shared = self.table_memory.get(_memory(tensor))
        if shared is not None or not _HEAD.match(last):
            return shared
        table = self.table_sample.get(_sample(tensor))
        return table if table is not None and torch.equal(self.tensors[table], tensor) else None


def _sample(tensor: Tensor) -> object:
    """What tensors of equal elements have in common: type, shape, and the bits of some elements."""
    if not is_plain(tensor) or tensor.dtype not in _FLOATS or not tensor.numel():
        return id(tensor)
    some = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // _SAMPLES)].contiguous()
    return tensor.dtype, tuple(tensor.shape), some.cpu().view(torch.uint8).numpy().tobytes()


def _memory(tensor: Tensor) -> object:
    if tensor.layout is not torch.strided or tensor.is_meta:
        return id(tensor)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def _matched(pattern: str, names: Mapping[str, Tensor]) -> list[str]:
    found = [name for name in names if matches(pattern, name)]
    if not found:
        shown = ", ".join(list(names)[:5])
        raise CheckpointError(
            f"expected a pattern that matches a tensor, got {pattern!r}; try one of {shown}"
        )
    return found
