"""The packed weights among the entries of a state_dict: left as they are, or unpacked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.layout import PackedParts
from sparseinfer.checkpoints.tensors import identity, is_plain
from sparseinfer.formats.handles import Handle, peek
from sparseinfer.layers.quantized_input import DENSE_KERNEL, NAMES

__all__ = ["LOOK_TIMES", "MOST_TIMES", "OF_INPUTS", "Packed", "dtype_of", "plain_name"]

_MAGIC = b"SPARSINF"

LOOK_TIMES, MOST_TIMES = 32, 1024
"""So many times its bytes may a packed weight take, to be looked at and to be loaded: those of a
weight with one non-zero in a thousand do."""

_ROOM = 1 << 26
"""Bytes that all packed weights may take beyond that: an emptied layer's are no more than its rows.
"""

OF_INPUTS = (*NAMES, DENSE_KERNEL)
"""What may stand beside the packed weight of an int8 layer: the scale of its input, its kernel."""


class Packed:
    """The packed weights of `entries`, of which `rows` tell those that have several parts.

    `weights` has those to unpack, plain name and parts by each part; `kept` the plain names of the
    tensors that stay packed, because `keep` says so of all parts of their weight.

    Raises:
        CheckpointError: a packed weight is not valid, or a part of one is missing.

    Example:
        >>> from sparseinfer import pack
        >>> packed = Packed({"fc.packed": pack(torch.eye(2))}, {}, lambda name, handle: False, 32)
        >>> packed.unpack(*packed.weights["fc.packed"])
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(
        self, entries: Mapping[str, Any], rows: Mapping[str, PackedParts],
        keep: Callable[[str, Handle], bool], times: int,
    ) -> None:  # fmt: skip
        self._entries = entries
        self._room = _Room(times)
        self._unpacked: dict[object, Tensor] = {}
        self._handles: dict[int, Handle] = {}
        self.infos: dict[str, dict[str, Any]] = {}
        told = {part: name for name, row in rows.items() for part in row.parts}
        wishes = {}
        for key, value in entries.items():
            # Tied ones are one tensor, and looked at once.
            handle = self._handles.get(id(value)) or _handle(key, value)
            if handle is not None:
                self._handles[id(value)] = handle
                self.infos[key] = handle.info
                wishes[key] = keep(told.get(key, plain_name(key)), handle)
        self.weights: dict[str, tuple[str, PackedParts]] = {}
        self.kept: dict[str, str] = {}
        for name, row in self._all_rows(rows).items():
            if all(wishes[part] for part in row.parts):
                self.kept.update(dict.fromkeys(row.parts, name))
            else:
                self.weights.update(dict.fromkeys(row.parts, (name, row)))

    def _all_rows(self, told: Mapping[str, PackedParts]) -> dict[str, PackedParts]:
        """The parts of every packed weight by its plain name."""
        rows, seen = dict(told), set()
        for name, row in told.items():
            for part in row.parts:
                if part not in self.infos or part in seen:
                    raise CheckpointError(
                        f"{name}: expected a packed weight {part} of its own, got none; try "
                        "another copy of the file"
                    )
                seen.add(part)
        for key in self.infos:
            name = plain_name(key)
            if key in seen:
                continue
            if name in rows:
                raise CheckpointError(
                    f"{name}: expected one packed weight of this name, got two; try another copy "
                    "of the file"
                )
            rows[name] = PackedParts((key,))
        return rows

    def belongs(self, key: str) -> bool:
        """Whether `key` is the scale of an int8 layer's input, or its kernel, of one unpacked.

        These are no part of a plain weight.
        """
        prefix, _, name = key.rpartition(".")
        return name in OF_INPUTS and f"{prefix}.packed".lstrip(".") in self.weights

    def unpack(self, name: str, row: PackedParts) -> Tensor | None:
        """The dense weight of these parts; None where it would take many times their bytes.

        Raises:
            CheckpointError: the parts do not fit together, or are not arranged as `row` says.
        """
        tensors = [self._entries[part] for part in row.parts]
        known = (*map(identity, tensors), row.arrangement)
        if known in self._unpacked:
            return self._unpacked[known]
        infos = [self.infos[part] for part in row.parts]
        dtype = dtype_of(infos[0])
        for info, tensor in zip(infos, tensors, strict=True):
            size = math.prod(info["shape"]) * max(4, dtype.itemsize)
            if not self._room.take(size, tensor.numel()):
                return None
        try:
            dense = [
                row.arrangement.undo(self._handles[id(tensor)].unpack(tensor).to(dtype))
                for tensor in tensors
            ]
            self._unpacked[known] = dense[0] if len(dense) == 1 else torch.cat(dense)
        # torch.cat of shapes that do not fit is a RuntimeError.
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{name}: {error}") from error
        return self._unpacked[known]


def dtype_of(info: Mapping[str, Any]) -> torch.dtype:
    """The type of the dense weight.

    Integers are stored with scales, which the values have been multiplied by.

    Example:
        >>> from sparseinfer import formats
        >>> dtype_of(formats.info(formats.pack(torch.eye(2), weights="int8")))
        torch.float32
    """
    dtype: torch.dtype = getattr(torch, info["value_type"])
    return dtype if dtype.is_floating_point else torch.float32


def plain_name(key: str) -> str:
    return f"{key.removesuffix('packed')}weight"


class _Room:
    """The bytes that packed weights may be unpacked to: some at once, and many a byte of theirs."""

    def __init__(self, times: int) -> None:
        self.left, self.times = _ROOM, times

    def take(self, dense: int, stored: int) -> bool:
        left = self.left + self.times * stored - dense
        if left >= 0:
            self.left = min(left, _ROOM)
        return left >= 0


def _handle(key: str, value: Any) -> Handle | None:
    """The validated view of a packed weight; None where `value` is something else."""
    if key.rpartition(".")[2] != "packed" or not isinstance(value, Tensor) or not is_plain(value):
        return None
    if value.dtype is not torch.uint8 or value.dim() != 1:
        return None
    if bytes(value[: len(_MAGIC)].tolist()) != _MAGIC:
        return None
    try:
        return peek(value)
    except ValueError as error:
        raise CheckpointError(f"{key}: {error}") from error
