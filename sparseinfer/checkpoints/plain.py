"""A state_dict as an unpruned, uncompressed model has it: masks applied, nothing compressed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparseinfer.checkpoints.bitmask import MAX_DIMS, PARTS, decompress
from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.integers import SUFFIXES, with_packed
from sparseinfer.checkpoints.layout import read_layout
from sparseinfer.checkpoints.masks import fitted, is_mask_of, note_of_mask, weight_of
from sparseinfer.checkpoints.packed import LOOK_TIMES, MOST_TIMES, OF_INPUTS, Packed, dtype_of
from sparseinfer.checkpoints.tensors import identity, is_plain
from sparseinfer.formats.handles import Handle

__all__ = ["Plain", "make_plain"]

_PARAMETRIZATION = re.compile(r"^(?:(.*)\.)?parametrizations\.([^.]+)\.(.+)$")
_MASK_OF_PARAMETRIZATION = re.compile(r"^\d+\.mask$")


@dataclass
class Plain:
    """The plain entries; from which entry each new name comes (`origin`), and how (`sources`).

    `sources` maps a name to `mask`, `parametrization`, `sparse-bitmask`, `sparse-24-bitmask` or
    `packed`, the form in which it was stored, with the bytes it took as `stored_bytes`. `looked_at`
    has what `info` tells of packed weights that were not unpacked; their tensors are on the meta
    device. `kept` are the packed tensors that were left as they are, with the plain names of their
    weights. `masks` are those that were applied, `notes` tell of others that were not.
    """

    tensors: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    stored_bytes: dict[str, int] = field(default_factory=dict)
    looked_at: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def _put(self, name: str, value: Any) -> None:
        if name in self.tensors or name in self.kept.values():
            raise CheckpointError(
                f"{name}: expected one tensor of this name, got two in different forms; "
                "try removing one of them"
            )
        self.tensors[name] = value

    def _add(self, name: str, value: Tensor, source: str, parts: Mapping[str, Tensor]) -> None:
        self._put(name, value)
        self.origin[name] = next(iter(parts))
        self.sources[name] = source
        self.stored_bytes[name] = sum(part.numel() * part.element_size() for part in parts.values())


def make_plain(
    entries: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    look: bool = False,
    keep: Callable[[str, Handle], bool] = lambda name, handle: False,
) -> Plain:
    """Give every weight its plain name and its dense, effective value; all else stays as it is.

    Understood are `weight_orig` with `weight_mask` (torch.nn.utils.prune), `weight` with a mask of
    zeros and ones called `weight_mask` or `mask` beside it, `parametrizations` with nothing but
    masks (torch.ao.pruning), compressed-tensors' sparse-bitmask and sparse-24-bitmask with keys of
    before and since version 0.9, and sparseinfer's packed buffers. Tensors tied before stay tied.
    `metadata` is that of a safetensors header. With `look`, packed weights that would take many
    times their bytes are not unpacked but described. A packed weight stays packed, with the scale
    of its layer's input, where `keep` says so of its plain name and its view.

    Raises:
        CheckpointError: parts of a weight do not fit together, a plain name occurs twice, or packed
            weights would take more than a thousand times their bytes.

    Example:
        >>> pair = {"fc.weight_orig": torch.ones(1, 2), "fc.weight_mask": torch.tensor([[0., 1.]])}
        >>> make_plain(pair).tensors
        {'fc.weight': tensor([[0., 1.]])}
    """
    layout = read_layout(metadata or {})
    made = {
        name: {f"{name}{end}": entries.get(f"{name}{end}") for end in SUFFIXES}
        for name in layout.integers
    }
    entries = with_packed(entries, layout.integers) if made else entries
    again = _packed_aliases(entries, layout.aliases)
    entries = {**entries, **again} if again else entries
    packed = Packed(entries, layout.packed, keep, LOOK_TIMES if look else MOST_TIMES)
    groups = _compressed_groups(entries)
    old_keys = any(prefix.endswith(".weight") for prefix in groups)
    taken = {key for keys in groups.values() for key in keys.values()}
    pairs = _masked(entries)
    taken |= {mask for masks in pairs.values() for mask in masks[1:]}
    by_original = {masks[0]: name for name, masks in pairs.items()}
    first_of = {next(iter(keys.values())): prefix for prefix, keys in groups.items()}
    result = Plain()
    for name, (original, *masks) in pairs.items():
        if original == name:
            result.masks.update({mask: entries[mask] for mask in masks})
    for key in entries:
        note = None if key in taken else note_of_mask(key, entries)
        if note is not None:
            result.notes.append(note)
    result.kept = packed.kept
    products: dict[tuple[Any, ...], Tensor] = {}
    for key, value in entries.items():
        if key in by_original:
            name, masks = by_original[key], pairs[by_original[key]][1:]
            parts = {each: entries[each] for each in (key, *masks)}
            parents = tuple(identity(part) for part in parts.values())
            source = "parametrization" if ".parametrizations." in f".{key}" else "mask"
            if parents not in products:
                multiplied = source == "mask"
                products[parents] = _product(name, list(parts.values()), multiplied)
            result._add(name, products[parents], source, parts)
        elif key in first_of:
            prefix = first_of[key]
            parts = {each: entries[each] for each in groups[prefix].values()}
            by_part = {part: entries[each] for part, each in groups[prefix].items()}
            source = "sparse-bitmask" if "row_offsets" in by_part else "sparse-24-bitmask"
            dense = decompress(by_part, prefix)
            name = prefix if old_keys else f"{prefix}.weight"
            if prefix in layout.tensors:
                name, shape = layout.tensors[prefix]
                dense = _shaped(dense, shape, name)
            result._add(name, dense, source, parts)
        elif key in packed.weights:
            name, row = packed.weights[key]
            if key != row.parts[0]:
                continue
            parts = {}
            for part in row.parts:
                parts.update(made.get(part, {part: entries[part]}))
            unpacked = packed.unpack(name, row)
            if unpacked is None and not look:
                shape = packed.infos[key]["shape"]
                raise CheckpointError(
                    f"{key}: expected a packed weight of at most {MOST_TIMES} times its bytes, "
                    f"got {list(shape)} in {value.numel()} bytes; "
                    "try load_converted, which leaves it packed"
                )
            if unpacked is None:
                facts = packed.infos[key]
                unpacked = torch.empty(facts["shape"], dtype=dtype_of(facts), device="meta")
                result.looked_at[name] = facts
            result._add(name, unpacked, "packed", parts)
        elif key not in taken and not packed.belongs(key):
            result._put(key, value)
    for alias, name in layout.aliases.items():
        if name in result.tensors and alias not in result.tensors:
            result.tensors[alias] = result.tensors[name]
            result.origin[alias] = result.origin.get(name, name)
    for name in result.tensors:
        key = result.origin.get(name, name)
        stored = layout.aliases[key] if key in again else key
        stored = next(iter(made.get(stored, [stored])))
        if stored != key:
            result.origin[name] = stored
    return result


def _compressed_groups(entries: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The keys of each compressed weight: prefix -> part -> key."""
    groups: dict[str, dict[str, str]] = {}
    for key, value in entries.items():
        prefix, dot, part = key.rpartition(".")
        if dot and part in PARTS and isinstance(value, Tensor):
            groups.setdefault(prefix, {})[part] = key
    # A module may well call a tensor of its own shape; a bitmask and values make a weight.
    return {
        prefix: keys for prefix, keys in groups.items() if "bitmask" in keys or "compressed" in keys
    }


def _masked(entries: Mapping[str, Any]) -> dict[str, list[str]]:
    """Plain name -> the keys of the original and of its masks."""
    pairs: dict[str, list[str]] = {}
    parametrized: dict[str, list[str]] = {}
    for key, value in entries.items():
        if not isinstance(value, Tensor) or not is_plain(value):
            continue
        base = key.removesuffix("_orig")
        if base != key and isinstance(entries.get(f"{base}_mask"), Tensor):
            pairs[base] = [key, f"{base}_mask"]
        found = _PARAMETRIZATION.match(key)
        if found is not None:
            prefix, name, _ = found.groups()
            parametrized.setdefault(f"{prefix}.{name}" if prefix else name, []).append(key)
    for key, value in entries.items():
        weight = weight_of(key)
        if weight is not None and weight not in pairs and is_mask_of(value, entries.get(weight)):
            pairs[weight] = [weight, key]
    for name, keys in parametrized.items():
        originals = [key for key in keys if key.endswith(".original")]
        masks = [key for key in keys if key not in originals]
        if len(originals) == 1 and masks and all(map(_is_mask, masks)):
            pairs[name] = [*originals, *masks]
    return pairs


def _is_mask(key: str) -> bool:
    found = _PARAMETRIZATION.match(key)
    return found is not None and bool(_MASK_OF_PARAMETRIZATION.match(found.group(3)))


def _product(name: str, tensors: Iterable[Tensor], multiplied: bool) -> Tensor:
    original, *masks = tensors
    result = original.detach()
    for mask in masks:
        if not is_plain(mask):
            raise CheckpointError(
                f"{name}: expected a dense mask, got {mask.layout} on {mask.device}; "
                "try mask.to_dense() before saving"
            )
        own = fitted(mask.detach(), original.shape, multiplied)
        if own is None:
            raise CheckpointError(
                f"{name}: expected a mask of shape {list(original.shape)}, got {list(mask.shape)}; "
                "try the checkpoint that both belong to"
            )
        result = result * own.to(result.dtype)
    return result


def _shaped(dense: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if not 1 <= len(shape) <= MAX_DIMS or min(shape) < 1 or math.prod(shape) != dense.numel():
        raise CheckpointError(
            f"{name}: expected a shape of {dense.numel()} elements in the metadata, got "
            f"{list(shape)}; try another copy of the file"
        )
    return dense.view(shape)


def _packed_aliases(entries: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """What is stored once for several packed weights, under the names that it is not stored by."""
    own = {*OF_INPUTS, "packed"}
    return {
        alias: entries[name]
        for alias, name in aliases.items()
        if alias not in entries and name in entries and alias.rpartition(".")[2] in own
    }
