"""Finds the layers of a model that could be sparse, and the facts about their weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseinfer.convert.blocked import attention_blocked, blocked
from sparseinfer.convert.tree import Tree
from sparseinfer.formats.patterns import Pattern, detect_pattern
from sparseinfer.layers.dense import by_outputs, computed_weight, effective, matrices
from sparseinfer.layers.kinds import Kind, kind_of, kind_of_sparse
from sparseinfer.layers.projections import attends_another
from sparseinfer.layers.quantized import is_quantized, quantized_weights

__all__ = ["Layer", "brief", "evaluating", "scan"]

_LOOKUPS = (nn.Embedding, nn.EmbeddingBag)

_ALWAYS_LISTED = (nn.Conv3d, nn.Embedding)
"""Without a kernel, and common enough to be asked about even where nothing is pruned."""


@dataclass
class Layer:
    """One dense layer of a model: its place, what its weight holds, may it be replaced.

    `names` are all its names, the first one leading (a shared module has several). `kind` is the
    name of a row of `sparseinfer.layers.kinds.KINDS`, or torch's class in lower case where no
    sparse layer takes its place. `shape` is that of a plain layer's weight. `nnz` counts non-zeros
    (NaN and Inf are among them), `nonfinite` the NaN and Inf. `blocked` says why the layer has to
    stay as it is, and is empty where it may be replaced.
    """

    names: list[str]
    module: nn.Module
    kind: str
    shape: tuple[int, ...]
    groups: int
    nnz: int
    nonfinite: int
    pattern: Pattern | None
    dtype: torch.dtype
    device: torch.device
    blocked: str = ""

    @property
    def name(self) -> str:
        """The leading name; the root module's is the empty string."""
        return self.names[0]

    @property
    def numel(self) -> int:
        """Elements of the dense weight."""
        return torch.Size(self.shape).numel()

    @property
    def density(self) -> float:
        """Non-zeros over elements, 0 to 1; 1 where the values cannot be read: no zero is known."""
        return self.nnz / max(1, self.numel) if self.pattern else 1.0

    @property
    def rows(self) -> int:
        """Output features or channels."""
        if getattr(self.module, "transposed", False):
            return self.shape[1] * self.groups
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Weights that an output is summed from; on average, where a stride spreads them."""
        layer: Any = self.module
        phases = math.prod(layer.stride) if getattr(layer, "transposed", False) else 1
        return -(-self.numel // (self.rows * phases))

    def weight(self) -> Tensor:
        """The effective weight, computed anew where the layer is masked or parametrized."""
        with evaluating(self.module):  # spectral_norm changes its state in training mode
            kind = kind_of(self.module)
            weight = (computed_weight if kind is None else kind.matrix)(self.module)
        if weight is None:
            raise ValueError(f"expected {self.name} to have a weight, got None; try another layer")
        return weight

    def dense(self) -> nn.Module:
        """A plain layer of this weight, and of the biases as they take effect."""
        kind = kind_of(self.module)
        assert kind is not None
        return kind.rebuild(self.module, self.weight(), kind.effective_biases(self.module))


def scan(model: nn.Module, apart: Collection[nn.Module] | None = None) -> list[Layer]:
    """List the layers of a model that have a sparse counterpart, wherever nested, in order.

    The projections of an `nn.MultiheadAttention` are layers, see `sparseinfer.layers.projections`;
    `apart` are the attentions whose query, key and value differ (None: guessed from where they
    stand). Layers that hold zeros and have no counterpart are listed too, blocked, and Conv3d and
    Embedding always. Weights behind `torch.nn.utils.prune` masks and parametrizations are read as
    they take effect.

    Example:
        >>> [layer.name for layer in scan(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))]
        ['0']
    """
    tree = Tree(model)
    layers = []
    with evaluating(model):
        for module, names in tree.names.items():
            try:
                layers += _layers_of(module, names, tree, apart)
            except Exception as error:  # of a stranger's class: one layer stops no model
                kind = type(module).__name__.lower()
                layers.append(
                    _unreadable(module, kind, names, f"it cannot be read: {brief(error)}")
                )
    return layers


def _layers_of(
    module: nn.Module, names: list[str], tree: Tree, apart: Collection[nn.Module] | None
) -> list[Layer]:
    if tree.is_out_projection(module) or kind_of_sparse(module) is not None:
        return []
    kind = kind_of(module)
    if kind is None or kind.sparse is None:
        return list(_without_kernel(module, names))
    if kind.parts is not None:
        return _parts(module, kind, tree, apart)
    return [_facts(module, kind, names, blocked(module, kind, tree))]


def brief(error: BaseException) -> str:
    """The class of an exception and the first line of what it says.

    Example:
        >>> brief(ValueError("expected 1, got 2"))
        'ValueError: expected 1, got 2'
    """
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode without gradients, and each back as it was afterwards.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model): model.training
        False
        >>> model.training
        True
    """
    before = {module: module.training for module in model.modules()}
    try:
        for module in before:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in before.items():
            module.training = training


def _facts(module: nn.Module, kind: Kind, names: list[str], blocked: str) -> Layer:
    try:
        weight = kind.matrix(module)
        kind.effective_biases(module)  # which may be unreadable too
    except ValueError as error:
        weight, blocked = None, str(error)
    groups = getattr(module, "groups", 1)
    if weight is None:
        return _unreadable(module, kind.name, names, blocked or "it has no weight")
    return _weighed(Layer(
        names, module, kind.name, tuple(weight.shape), groups, 0, 0, None, weight.dtype,
        weight.device, blocked,
    ), weight)  # fmt: skip


def _unreadable(module: nn.Module, kind: str, names: list[str], blocked: str) -> Layer:
    tensors = (*module.parameters(), *module.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    return Layer(names, module, kind, (), 1, 0, 0, None, torch.float32, device, blocked)


def _weighed(facts: Layer, weight: Tensor) -> Layer:
    if type(weight) is not Tensor or weight.layout is not torch.strided:
        layout = str(weight.layout).removeprefix("torch.")
        no_plain = f"its weight is no plain tensor ({type(weight).__name__}, {layout})"
        facts.blocked = facts.blocked or no_plain
        return facts
    if weight.is_meta:
        facts.blocked = facts.blocked or "its weight is on the meta device, so it has no values"
        return facts
    facts.nnz = int(torch.count_nonzero(weight))
    facts.nonfinite = int(weight.numel() - torch.isfinite(weight).sum())
    if weight.numel() == 0:
        facts.blocked = facts.blocked or "its weight has no elements"
        return facts
    facts.pattern = detect_pattern(by_outputs(facts.module, weight))
    return facts


def _parts(
    attention: Any, kind: Kind, tree: Tree, apart: Collection[nn.Module] | None
) -> list[Layer]:
    """The projections of an attention."""
    assert kind.parts is not None
    names = tree.names[attention]
    parents = tree.parents.get(attention, [])
    separate = attends_another(attention, parents) if apart is None else attention in apart
    why = attention_blocked(attention, tree)
    try:
        found = kind.parts(attention, separate)
    except ValueError as error:
        return [_unreadable(attention, "linear", _suffixed(names, "in_proj"), str(error))]
    layers = []
    for part in found:
        own = kind_of(part)
        assert own is not None
        blocked = why or tree.tied(part.parameters_read, attention)
        layers.append(_facts(part, own, _suffixed(names, part.role), blocked))
    return layers


def _without_kernel(module: nn.Module, names: list[str]) -> Iterator[Layer]:
    """The weights of two and more dimensions of a module that no sparse layer can replace."""
    cls = parametrize.type_before_parametrizations(module)
    of_torch, kind = cls.__module__.startswith("torch.nn.modules."), cls.__name__
    if is_quantized(module):
        yield from _quantized(module, names, kind.lower())
        return
    for name in matrices(module):
        if not of_torch and name != "weight":
            continue
        if isinstance(module, _LOOKUPS):
            reason = "a lookup multiplies nothing, so zeros save it no time"
        else:
            reason = f"there is no sparse kernel for {'nn.' if of_torch else ''}{kind}"
        own = names if name == "weight" else _suffixed(names, name)
        weight = effective(module, name)
        assert weight is not None
        layer = _weighed(Layer(
            own, module, kind.lower(), tuple(weight.shape), 1, 0, 0, None, weight.dtype,
            weight.device, reason,
        ), weight)  # fmt: skip
        if isinstance(module, _ALWAYS_LISTED) or (layer.pattern and layer.nnz < layer.numel):
            yield layer


def _quantized(module: nn.Module, names: list[str], kind: str) -> Iterator[Layer]:
    reason = "it is quantized already, and the kernels compute in float32"
    weights = list(quantized_weights(module))
    for name, weight in weights:
        own = names if len(weights) == 1 else _suffixed(names, name)
        yield _weighed(Layer(
            own, module, kind, tuple(weight.shape), 1, 0, 0, None, torch.int8, weight.device,
            reason,
        ), weight)  # fmt: skip
    if not weights:
        yield _unreadable(module, kind, names, reason)


def _suffixed(names: list[str], last: str) -> list[str]:
    return [f"{name}.{last}" if name else last for name in names]
