"""What a checkpoint holds, tensor by tensor: sparsity, pattern, bytes, and what it may gain."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sparseinfer.checkpoints.checkpoint import open_checkpoint
from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.prunable import Choice, choose
from sparseinfer.checkpoints.tensors import identity, is_plain
from sparseinfer.formats.patterns import detect_pattern
from sparseinfer.layers.kinds import kind_named
from sparseinfer.progress import track

__all__ = ["Facts", "TensorFacts", "inspect_checkpoint"]

_KINDS = {2: "linear", 3: "conv1d", 4: "conv2d"}


@dataclass(frozen=True)
class TensorFacts:
    """A tensor: its weight if it is one of a layer, and how it is stored.

    `stored` is `plain` or the form that it was read from (see `Plain.sources`); `bytes` are those
    of that form. `pattern` and `gain` are empty where `prunable` is false; `gain` is dense over
    sparse time as `sparseinfer.timing.cost` models it for this machine's threads, at the least
    favourable input.
    """

    name: str
    shape: list[int]
    dtype: str
    elements: int
    zeros: int
    nonfinite: int
    bytes: int
    stored: str
    prunable: bool
    reason: str
    pattern: str = ""
    gain: float | None = None

    @property
    def sparsity(self) -> float:
        """The zeros of all elements, 0 to 1."""
        return self.zeros / max(1, self.elements)


@dataclass(frozen=True)
class Facts:
    """A checkpoint: its tensors, how it is contained, what lies beside the state_dict, and notes on
    masks that were not applied."""

    path: str
    container: str
    files: int
    key: str
    others: list[str]
    tensors: list[TensorFacts]
    notes: list[str] = field(default_factory=list)

    @property
    def totals(self) -> dict[str, Any]:
        """Tensors, elements, bytes, and the zeros of all and of the prunable elements."""
        prunable = [facts for facts in self.tensors if facts.prunable]
        elements = sum(facts.elements for facts in prunable)
        zeros = sum(facts.zeros for facts in prunable)
        return {
            "tensors": len(self.tensors),
            "elements": sum(facts.elements for facts in self.tensors),
            "bytes": sum(facts.bytes for facts in self.tensors),
            "prunable_tensors": len(prunable),
            "prunable_elements": elements,
            "zeros": zeros,
            "sparsity": zeros / max(1, elements),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, strings and numbers."""
        content = asdict(self)
        for entry, facts in zip(content["tensors"], self.tensors, strict=True):
            entry["sparsity"] = facts.sparsity
        return {**content, "totals": self.totals}


def inspect_checkpoint(
    path: str | os.PathLike[str], key: str | None = None, progress: bool | None = False
) -> Facts:
    """Look into a checkpoint that `load_sparse` reads; its weights are seen as they take effect.

    Raises:
        CheckpointError: it is missing or damaged, see `open_checkpoint`.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "model.pth")
        >>> torch.save({"fc.weight": torch.eye(64)}, path)
        >>> inspect_checkpoint(path).tensors[0].pattern
        'unstructured'
    """
    checkpoint = open_checkpoint(path, key)
    plain = checkpoint.make_plain(look=True)
    tensors = checkpoint.tensors
    try:
        choices = choose(tensors)
    except CheckpointError:
        # Nothing to prune is a finding here, no failure.
        choices = [
            Choice(name, tuple(t.shape), _name(t.dtype), False, "not a layer's weight")
            for name, t in tensors.items()
        ]
    found = []
    # Tied tensors, and there may be many, are gone through once.
    seen: dict[object, TensorFacts] = {}
    for choice in track(choices, len(choices), "inspecting", progress):
        tensor = tensors[choice.name]
        stored = plain.sources.get(choice.name, "plain")
        size = plain.stored_bytes.get(choice.name, tensor.numel() * tensor.element_size())
        same = identity(tensor), choice.taken, choice.name.rpartition(".")[2]
        if choice.name in plain.looked_at:
            seen[same] = _facts_of_packed(choice, tensor, size, plain.looked_at[choice.name])
        elif same not in seen:
            seen[same] = _facts(choice, tensor, stored, size)
        found.append(
            replace(seen[same], name=choice.name, reason=choice.reason, stored=stored, bytes=size)
        )
    first = checkpoint.shards[0]
    others = checkpoint.others
    return Facts(
        str(path), first.container, len(checkpoint.shards), first.key, others, found, plain.notes
    )


def _facts(choice: Choice, tensor: Tensor, stored: str, size: int) -> TensorFacts:
    zeros, nonfinite = _counts(tensor)
    pattern, gain = "", None
    if choice.taken:
        pattern = str(detect_pattern(tensor))
        gain = _gain(choice, tensor.shape, zeros)
    return TensorFacts(
        choice.name, list(choice.shape), choice.dtype, tensor.numel(), zeros, nonfinite, size,
        stored, choice.taken, choice.reason, pattern, gain,
    )  # fmt: skip


def _facts_of_packed(
    choice: Choice, tensor: Tensor, size: int, known: dict[str, Any]
) -> TensorFacts:
    zeros = tensor.numel() - known["nnz"]
    return TensorFacts(
        choice.name, list(choice.shape), choice.dtype, tensor.numel(), zeros, 0, size, "packed",
        True, "a layer's weight", f"packed as {known['format']}",
        _gain(choice, tensor.shape, zeros),
    )  # fmt: skip


def _counts(tensor: Tensor) -> tuple[int, int]:
    """Zeros, and NaN or Inf; none of either where there is nothing to count."""
    if not is_plain(tensor):
        return 0, 0
    try:
        values = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
        zeros = values.numel() - int(torch.count_nonzero(values))
        return zeros, values.numel() - int(torch.isfinite(values).sum())
    # torch keeps types that it has no operations for, such as float4 and the smaller integers.
    except RuntimeError:
        return 0, 0


def _gain(choice: Choice, shape: torch.Size, zeros: int) -> float | None:
    kind = _KINDS.get(len(shape))
    # Weights of other names are those of RNNs and attention, which no conversion replaces.
    if kind is None or choice.name.rpartition(".")[2] != "weight":
        return None
    M, K = shape[0], shape.numel() // shape[0]
    density = 1 - zeros / shape.numel()
    return kind_named(kind).worst_estimate(M, K, density, torch.get_num_threads()).speedup


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
