"""What `save_sparse` says in a file's metadata: names and shapes that its tensors do not tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.layers.arrangement import Arrangement
from sparseinfer.layers.phases import Axis

__all__ = ["LAYOUT", "IntegerParts", "Layout", "PackedParts", "dump_layout", "read_layout"]

LAYOUT = "sparseinfer"
"""The key of the safetensors metadata that holds a `Layout` as JSON."""


@dataclass(frozen=True)
class PackedParts:
    """The packed tensors that make a weight, one below the other, each arranged alike."""

    parts: tuple[str, ...]
    arrangement: Arrangement = field(default_factory=Arrangement)


@dataclass(frozen=True)
class IntegerParts:
    """The shape and groups of an int8 weight that is stored as its integers, see `integers`."""

    shape: tuple[int, ...]
    groups: int = 1


@dataclass
class Layout:
    """What a file's metadata holds.

    `tensors` has name and shape of a compressed weight by its prefix, where its parts do not tell
    them; `aliases` the names of tied tensors, which are stored once;
    `packed` the packed parts of a weight by its name, where that is not theirs with `weight` for
    `packed`, or they are arranged; `integers` the packed tensors that are stored as integers.
    """

    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    packed: dict[str, PackedParts] = field(default_factory=dict)
    integers: dict[str, IntegerParts] = field(default_factory=dict)


def dump_layout(layout: Layout) -> str:
    """The text of a layout.

    Example:
        >>> read_layout({LAYOUT: dump_layout(Layout(aliases={"head": "embed"}))}).aliases
        {'head': 'embed'}
    """
    data: dict[str, Any] = {
        "tensors": {
            prefix: {"name": name, "shape": list(shape)}
            for prefix, (name, shape) in layout.tensors.items()
        },
        "aliases": layout.aliases,
    }
    if layout.packed:
        data["packed"] = {name: _row(own) for name, own in layout.packed.items()}
    if layout.integers:
        data["integers"] = {name: asdict(own) for name, own in layout.integers.items()}
    return json.dumps(data)


def read_layout(metadata: Mapping[str, str]) -> Layout:
    """The layout in the metadata of a file; an empty one where there is none.

    Raises:
        CheckpointError: the entry is not of the form that `dump_layout` gives it.

    Example:
        >>> read_layout({})
        Layout(tensors={}, aliases={}, packed={}, integers={})
    """
    if LAYOUT not in metadata:
        return Layout()
    try:
        content = json.loads(metadata[LAYOUT])
        tensors, aliases = content["tensors"], content["aliases"]
        return Layout(
            {
                str(prefix): (str(entry["name"]), tuple(int(size) for size in entry["shape"]))
                for prefix, entry in tensors.items()
            },
            {str(alias): str(name) for alias, name in aliases.items()},
            {str(name): _parts(row) for name, row in content.get("packed", {}).items()},
            {
                str(name): IntegerParts(
                    tuple(int(size) for size in row["shape"]), int(row["groups"])
                )
                for name, row in content.get("integers", {}).items()
            },
        )
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            f"expected the metadata {LAYOUT!r} as save_sparse writes it, got {error!r}; "
            "try another copy of the file"
        ) from error


def _row(packed: PackedParts) -> dict[str, Any]:
    """What differs from a weight that is packed as it is."""
    plain, own = asdict(Arrangement()), asdict(packed.arrangement)
    changed = {name: value for name, value in own.items() if value != plain[name]}
    return {"parts": packed.parts, **changed}


def _parts(row: Mapping[str, Any]) -> PackedParts:
    names = tuple(str(part) for part in row["parts"])
    if not names:
        raise ValueError("no part")
    arrangement = Arrangement(
        bool(row.get("transposed", False)),
        tuple(
            Axis(int(a["kernel"]), int(a["stride"]), int(a["padding"]), int(a["dilation"]))
            for a in row.get("axes", ())
        ),
        tuple(int(size) for size in row.get("shape", ())),
        int(row.get("groups", 1)),
    )
    return PackedParts(names, arrangement)
