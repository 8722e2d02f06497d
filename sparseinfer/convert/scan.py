"""Finds the layers of a model that could be sparse, and the facts about their weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseinfer.formats.patterns import Pattern, detect_pattern
from sparseinfer.layers import recurrent_weights
from sparseinfer.layers.adapters import Padded, adapter_of, qualified_name
from sparseinfer.layers.dense import (
    build_dense,
    by_outputs,
    conv1d_of_transformers,
    effective,
    matrices,
    owned_parameters,
    rows_first,
    unusual_tensors,
)  # fmt: skip
from sparseinfer.layers.hooks import touching_hook
from sparseinfer.layers.kinds import Kind, kind_of
from sparseinfer.layers.linear_conv import SparseLayer
from sparseinfer.layers.own_code import COMPUTING, own_code
from sparseinfer.layers.projections import projections
from sparseinfer.layers.quantized import is_quantized, quantized_weights

__all__ = ["Layer", "brief", "evaluating", "scan"]

_LOOKUPS = (nn.Embedding, nn.EmbeddingBag)

_ALWAYS_LISTED = (nn.Conv3d, nn.Embedding)
"""Without a kernel, and common enough to be asked about even where nothing is pruned."""

_OF_ATTENTION = {
    "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k",
    "bias_v", "out_proj", "parametrizations",
}  # fmt: skip


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
            weight = rows_first(self.module)
        if weight is None:
            raise ValueError(f"expected {self.name} to have a weight, got None; try another layer")
        return weight

    def dense(self) -> nn.Module:
        """A plain layer of this weight, and of the biases as they take effect."""
        recurs = isinstance(self.module, nn.RNNBase)
        bias = None if recurs else effective(self.module, "bias")
        return build_dense(self.module, self.weight(), bias)


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
    tree = _Tree(model)
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
    module: nn.Module, names: list[str], tree: _Tree, apart: Collection[nn.Module] | None
) -> list[Layer]:
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module, tree, apart)
    if tree.is_out_projection(module) or isinstance(module, SparseLayer):
        return []
    kind = kind_of(module)
    if kind is None:
        return list(_without_kernel(module, names))
    return [_facts(module, kind.name, names, _blocked(module, kind, tree))]


def brief(error: BaseException) -> str:
    """The class of an exception and the first line of what it says.

    Example:
        >>> brief(ValueError("expected 1, got 2"))
        'ValueError: expected 1, got 2'
    """
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


class _Tree:
    """Where the modules and the Parameters of a model are registered."""

    def __init__(self, model: nn.Module) -> None:
        self.names: dict[nn.Module, list[str]] = {}
        self.parents: dict[nn.Module, list[nn.Module]] = {}
        self._owners: dict[int, set[nn.Module]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(name)
            if len(self.names[module]) > 1:
                continue
            for child in module.children():
                self.parents.setdefault(child, []).append(module)
            for parameter in (*module._parameters.values(), *module._buffers.values()):
                if parameter is not None:
                    self._owners.setdefault(id(parameter), set()).add(module)

    def is_out_projection(self, module: nn.Module) -> bool:
        """Whether an attention that reads this layer's weight is its only parent."""
        parents = self.parents.get(module, [])
        return len(parents) == 1 and (
            isinstance(parents[0], nn.MultiheadAttention) and parents[0].out_proj is module
        )

    def tied(self, parameters: Iterable[nn.Parameter], within: nn.Module) -> str:
        """Why parameters of `within` are another module's too; empty where they are not."""
        inside = set(within.modules())
        found = {
            owner
            for parameter in parameters
            for owner in self._owners.get(id(parameter), ())
            if owner not in inside
        }
        if not found:
            return ""
        named = sorted(f"{self.names[owner][0]} ({type(owner).__name__})" for owner in found)
        return f"its weight is the same Parameter as that of {', '.join(named)}"


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


def _facts(module: nn.Module, kind: str, names: list[str], blocked: str) -> Layer:
    try:
        weight = rows_first(module)
        for name in _biases(module):
            effective(module, name)
    except ValueError as error:
        weight, blocked = None, str(error)
    groups = getattr(module, "groups", 1)
    if weight is None:
        return _unreadable(module, kind, names, blocked or "it has no weight")
    return _weighed(Layer(
        names, module, kind, tuple(weight.shape), groups, 0, 0, None, weight.dtype, weight.device,
        blocked,
    ), weight)  # fmt: skip


def _biases(module: nn.Module) -> list[str]:
    if isinstance(module, nn.RNNBase):
        return recurrent_weights.names(module, "bias")
    return ["bias"]


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


def _blocked(module: nn.Module, kind: Kind, tree: _Tree) -> str:
    base: Any = conv1d_of_transformers(module) or kind.dense
    if any(name in vars(module) for name in COMPUTING):
        return "its forward was replaced on the instance"
    adapter = adapter_of(module)
    own = own_code(module, base) if adapter is None else _unused_padding(module)
    if own:
        return f"its class {qualified_name(module)} {own}"
    for parent in tree.parents.get(module, []):
        if isinstance(parent, nn.MultiheadAttention):
            return f"nn.{type(parent).__name__} reads its weight directly, without calling it"
    hook = touching_hook(module)
    if hook:
        return f"its own hook {hook} touches its weight, or may"
    names = recurrent_weights.names(module) if isinstance(module, nn.RNNBase) else ["weight"]
    tied = tree.tied([own for name in names for own in owned_parameters(module, name)], module)
    if tied:
        return tied
    if isinstance(module, nn.RNNBase):
        if module.proj_size:
            return "there is no sparse kernel for a layer with proj_size"
        if any(parameter.is_cuda for parameter in module.parameters()):
            return "there is no kernel for the steps of a recurrent layer on a GPU"
    usual = () if adapter is None else adapter.usual
    unusual = unusual_tensors(module, [*names, *_biases(module), *usual])
    if unusual:
        return f"it carries more than weight and bias: {', '.join(unusual)}"
    return _unused_masks(module, names)


def _unused_padding(module: Any) -> str:
    """A known forward passes by the padding mode of torch's."""
    mode = getattr(module, "padding_mode", "zeros")
    if mode == "zeros" or isinstance(module, Padded):
        return ""
    return f"has the padding mode {mode}, and a forward that does not use it"


def _unused_masks(module: nn.Module, names: Iterable[str]) -> str:
    """Why a mask beside a plain weight cannot be left out: it would change the weight."""
    for name in names:
        mask = module._buffers.get(f"{name}_mask")
        weight = module._parameters.get(name, module._buffers.get(name))
        if mask is None or weight is None:
            continue
        if mask.shape != weight.shape or not torch.equal(weight * mask.to(weight.dtype), weight):
            return f"its {name}_mask would change its {name}, and nothing seen applies it"
    return ""


def _attention(
    attention: nn.MultiheadAttention, tree: _Tree, apart: Collection[nn.Module] | None
) -> list[Layer]:
    names = tree.names[attention]
    if apart is None:
        separate = any(
            isinstance(parent, nn.TransformerDecoderLayer) and parent.multihead_attn is attention
            for parent in tree.parents.get(attention, [])
        )
    else:
        separate = attention in apart
    blocked = _attention_blocked(attention, tree)
    try:
        found = projections(attention, separate)
    except ValueError as error:
        return [_unreadable(attention, "linear", _suffixed(names, "in_proj"), str(error))]
    return [
        _facts(layer, "linear", _suffixed(names, layer.role), blocked or tree.tied(
            layer.parameters_read, attention))
        for layer in found
    ]  # fmt: skip


def _attention_blocked(attention: nn.MultiheadAttention, tree: _Tree) -> str:
    if "forward" in vars(attention):
        return "the forward of its attention was replaced on the instance"
    own = own_code(attention, nn.MultiheadAttention)
    if own:
        return f"the class {qualified_name(attention)} of its attention {own}"
    hook = touching_hook(attention)
    if hook:
        return f"the hook {hook} of its attention touches its weight, or may"
    unusual = [
        name
        for name in (*attention._parameters, *attention._buffers, *attention._modules)
        if name.removesuffix("_orig").removesuffix("_mask") not in _OF_ATTENTION
    ]
    if unusual:
        return f"its attention carries more than torch's: {', '.join(unusual)}"
    if not tree.is_out_projection(attention.out_proj):
        return "the out_proj of its attention is registered elsewhere too"
    return ""


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
