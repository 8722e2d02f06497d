"""The state_dict of a live model by the names of its dense one, and what of it stays packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseinfer.checkpoints.layout import PackedParts
from sparseinfer.checkpoints.packed import OF_INPUTS, plain_name
from sparseinfer.layers.base import SparseLayer
from sparseinfer.layers.dense import effective
from sparseinfer.layers.kinds import kind_of_sparse

__all__ = ["ModelState", "state_of"]


@dataclass
class ModelState:
    """The tensors; those that are packed stay so, and `rows` tell what weights they make, where
    their names do not."""

    tensors: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, PackedParts] = field(default_factory=dict)


def state_of(model: nn.Module, narrow: bool) -> ModelState:
    """Tensors of a model under plain names: weights unpacked, masks applied.

    With `narrow`, weights stay packed that have fewer bits than their layers, with what stands
    beside them. A module alone can tell the order that it packs its weight in, and the masks of
    torch.ao.pruning, which keep themselves out of the state_dict.

    Example:
        >>> from sparseinfer import SparseLinear
        >>> list(state_of(SparseLinear.from_dense(nn.Linear(4, 4)), narrow=True).tensors)
        ['bias', 'weight']
    """
    state = ModelState()
    known: dict[tuple[nn.Module, str], Tensor] = {}
    # By each stored name the name that it gets and its tensor; None where another one holds it too.
    replaced: dict[str, tuple[str, Tensor] | None] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        for plain, stored in _sources(module).items():
            parts = tuple(f"{prefix}{part}" for part in stored)
            # What a recurrent layer or an attention says of its parts goes before what they say.
            if any(part in replaced for part in parts):
                continue
            layers = _packed_parts(module, stored) if narrow else []
            if layers and all(layer.is_narrow for layer in layers):
                replaced.update(
                    {part: (part, layer.packed) for part, layer in zip(parts, layers, strict=True)}
                )
                row = PackedParts(parts, layers[0].arrangement)
                if row != PackedParts((parts[0],)) or plain_name(parts[0]) != f"{prefix}{plain}":
                    state.rows[f"{prefix}{plain}"] = row
                continue
            if (module, plain) not in known:
                known[module, plain] = _value(module, plain)
            replaced.update(dict.fromkeys(parts[1:]))
            replaced[parts[0]] = f"{prefix}{plain}", known[module, plain]
    held = model.state_dict()
    for name, value in held.items():
        found = replaced.get(name, (name, value))
        if found is not None and not _beside_unpacked(name, held, replaced):
            state.tensors[found[0]] = found[1]
    return state


def _sources(module: Any) -> dict[str, tuple[str, ...]]:
    """The stored tensors that make each plain one, where a module stores it in another form."""
    kind = kind_of_sparse(module)
    if kind is not None and kind.parts is not None:
        return module.sources()  # type: ignore[no-any-return]
    if kind is not None:
        return {name: (stored,) for name, stored in kind.sparse.renames(module).items()}
    if not parametrize.is_parametrized(module):
        return {}
    return {
        name: (f"parametrizations.{name}.original",)
        for name, parts in module.parametrizations.items()
        if all(map(_is_mask, parts))
    }


def _packed_parts(module: nn.Module, stored: tuple[str, ...]) -> list[SparseLayer]:
    """The layers that hold these tensors packed; none where one is not."""
    found = []
    for part in stored:
        owner, _, own = part.rpartition(".")
        layer = module.get_submodule(owner) if own == "packed" else None
        if not isinstance(layer, SparseLayer):
            return []
        found.append(layer)
    return found


def _value(module: Any, name: str) -> Tensor:
    sparse = kind_of_sparse(module) is not None
    value = module.dense_tensor(name) if sparse else effective(module, name)
    assert value is not None
    return value  # type: ignore[no-any-return]


def _beside_unpacked(
    name: str, held: Mapping[str, Any], replaced: Mapping[str, tuple[str, Tensor] | None]
) -> bool:
    """Whether it is the scale or the kernel of an int8 weight that does not stay packed."""
    prefix, _, own = name.rpartition(".")
    packed = f"{prefix}.packed".lstrip(".")
    if own not in OF_INPUTS or packed not in held:
        return False
    found = replaced.get(packed)
    return found is None or found[0] != packed


def _is_mask(part: nn.Module) -> bool:
    return [name for name, _ in part.named_buffers()] == ["mask"] and not list(part.parameters())
