"""Finds the layers of a model that could be sparse, and the facts about their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseinfer.patterns import Pattern, detect_pattern
from sparseinfer.weights import effective, owned_parameters, unusual_tensors

__all__ = ["Layer", "evaluating", "scan"]

_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Linear, "linear"),
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
)


@dataclass
class Layer:
    """One dense layer of a model: its place, what its weight holds, may it be replaced.

    `names` are all its names, the first one leading (a shared module has several). `kind` is
    `linear`, `conv1d` or `conv2d`. `nnz` counts non-zeros (NaN and Inf are among them), `nonfinite`
    the NaN and Inf. `blocked` says why the layer has to stay as it is, and is empty where it may be
    replaced.
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
        """Non-zeros over elements, 0 to 1."""
        return self.nnz / max(1, self.numel)

    def weight(self) -> Tensor:
        """The effective weight, computed anew where the layer is masked or parametrized."""
        weight = effective(self.module, "weight")
        if weight is None:
            raise ValueError(f"expected {self.name} to have a weight, got None; try another layer")
        return weight


def scan(model: nn.Module) -> list[Layer]:
    """List every `nn.Linear`, `nn.Conv1d` and `nn.Conv2d` of a model, wherever nested, in order.

    Weights behind `torch.nn.utils.prune` masks and parametrizations are read as they take effect.

    Example:
        >>> [layer.name for layer in scan(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))]
        ['0']
    """
    names: dict[nn.Module, list[str]] = {}
    parents: dict[nn.Module, list[nn.Module]] = {}
    owners: dict[int, set[nn.Module]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
        if len(names[module]) > 1:
            continue
        for child in module.children():
            parents.setdefault(child, []).append(module)
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(module)
    layers = []
    with evaluating(model):
        for module, found in names.items():
            kind = next((kind for cls, kind in _KINDS if isinstance(module, cls)), None)
            if kind is not None:
                layers.append(_facts(module, kind, found, parents.get(module, []), owners))
    return layers


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


def _facts(
    module: nn.Module, kind: str, names: list[str], parents: list[nn.Module],
    owners: dict[int, set[nn.Module]],
) -> Layer:  # fmt: skip
    blocked = _blocked(module, parents, owners)
    try:
        weight = effective(module, "weight")
        effective(module, "bias")
    except ValueError as error:
        weight, blocked = None, str(error)
    groups = getattr(module, "groups", 1)
    if weight is None:
        blocked = blocked or "it has no weight"
        return Layer(
            names,
            module,
            kind,
            (),
            groups,
            0,
            0,
            None,
            torch.float32,
            torch.device("meta"),
            blocked,
        )
    shape = tuple(weight.shape)
    facts = Layer(
        names, module, kind, shape, groups, 0, 0, None, weight.dtype, weight.device, blocked
    )
    if weight.is_meta:
        facts.blocked = facts.blocked or "its weight is on the meta device, so it has no values"
        return facts
    facts.nnz = int(torch.count_nonzero(weight))
    facts.nonfinite = int(weight.numel() - torch.isfinite(weight).sum())
    if weight.numel() == 0:
        facts.blocked = facts.blocked or "its weight has no elements"
        return facts
    facts.pattern = detect_pattern(weight)
    return facts


def _blocked(module: nn.Module, parents: list[nn.Module], owners: dict[int, set[nn.Module]]) -> str:
    cls: Any = parametrize.type_before_parametrizations(module)
    base: Any = next(base for base, _ in _KINDS if isinstance(module, base))
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if cls.forward is not base.forward or (
        getattr(cls, "_conv_forward", None) is not getattr(base, "_conv_forward", None)
    ):
        return f"its class {cls.__name__} has a forward of its own"
    for parent in parents:
        if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            return f"nn.{type(parent).__name__} reads its weight directly, without calling it"
    shared = {
        owner
        for parameter in owned_parameters(module, "weight")
        for owner in owners.get(id(parameter), ())
        if owner is not module and owner not in set(module.modules())
    }
    if shared:
        kinds = ", ".join(sorted({type(owner).__name__ for owner in shared}))
        return f"its weight is the same Parameter as that of another module ({kinds})"
    unusual = unusual_tensors(module)
    if unusual:
        return f"it carries more than weight and bias: {', '.join(unusual)}"
    return ""
