"""The rows of a report: layers of one shape and one outcome, at like places of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparseinfer.convert.layer_report import LayerReport

__all__ = ["Row", "group"]


@dataclass(frozen=True)
class Row:
    """Layers that are told together: bytes and milliseconds are those of all of them.

    `name` has a star where the names differ, `zeros` is the share of their weights that is zero,
    and `speedup`, within `low` to `high`, that of all at once. `reason` is the first one's: those
    of the others differ from it in figures alone. What was not timed is None. `weights` and
    `activations` are the types of what is multiplied, and `wider` why it is wider than asked;
    `sqnr_db` is the least of a narrow layer's, and `over` the time of each rival over theirs.
    """

    name: str
    names: list[str]
    kind: str
    shape: list[int]
    zeros: float
    pattern: str
    format: str
    is_sparse: bool
    dense_bytes: int
    bytes: int
    dense_ms: float | None
    ms: float | None
    sparse_ms: float | None
    speedup: float | None
    low: float | None
    high: float | None
    inputs: str
    reason: str
    nonfinite: int
    weights: str = "float32"
    activations: str = "float32"
    wider: str = ""
    sqnr_db: float | None = None
    over: dict[str, float] = field(default_factory=dict)

    @property
    def runs_as(self) -> str:
        """The format, with the type of its values where that is not float32."""
        if self.weights == "float32":
            return self.format
        pairs = self.weights == self.activations == "bfloat16"
        return f"{self.format} {self.weights}{' x bfloat16' if pairs else ''}"

    @property
    def title(self) -> str:
        """The name, and how many layers it stands for where those are several."""
        name = self.name or "(root)"
        return name if len(self.names) == 1 else f"{name} ({len(self.names)} layers)"

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return {**asdict(self), "layers": len(self.names)}


def group(layers: Sequence[LayerReport]) -> list[Row]:
    """The rows of these layers, in the order of the first layer of each.

    Those go together whose names differ in numbers alone, and whose kind, shape, pattern, format,
    inputs and reason, but for its figures, are the same.

    Example:
        >>> from sparseinfer.convert.layer_report import LayerReport
        >>> layers = [LayerReport(f"layers.{i}.query", "linear", [8, 8], 64, 0.0, "dense", "dense",
        ...                       256, 0, "it has no zeros") for i in range(12)]
        >>> [row.title for row in group(layers)]
        ['layers.*.query (12 layers)']
    """
    groups: dict[tuple[object, ...], list[LayerReport]] = {}
    for layer in layers:
        key = (
            _starred(layer.name), layer.kind, tuple(layer.shape), layer.pattern, layer.format,
            layer.weights, layer.activations, layer.inputs, layer.timing,
            re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "#", layer.reason),
        )  # fmt: skip
        groups.setdefault(key, []).append(layer)
    return [_row(members) for members in groups.values()]


def _row(layers: Sequence[LayerReport]) -> Row:
    first = layers[0]
    elements = sum(layer.dense_bytes for layer in layers)
    dense_ms = _sum([layer.dense_ms for layer in layers])
    return Row(
        name=first.name if len(layers) == 1 else _shared([layer.name for layer in layers]),
        names=[layer.name for layer in layers],
        kind=first.kind,
        shape=first.shape,
        zeros=sum(layer.dense_bytes * layer.sparsity for layer in layers) / max(1, elements),
        pattern=first.pattern,
        format=first.format,
        is_sparse=first.is_sparse,
        dense_bytes=elements,
        bytes=sum(layer.bytes for layer in layers),
        dense_ms=dense_ms,
        ms=_sum([layer.ms for layer in layers]),
        sparse_ms=_sum([layer.sparse_ms for layer in layers]),
        speedup=_together(layers, [layer.speedup for layer in layers], dense_ms),
        low=_together(layers, [layer.low for layer in layers], dense_ms),
        high=_together(layers, [layer.high for layer in layers], dense_ms),
        inputs=first.inputs,
        reason=first.reason,
        nonfinite=sum(layer.nonfinite for layer in layers),
        weights=first.weights,
        activations=first.activations,
        wider=first.wider,
        sqnr_db=min((layer.sqnr_db for layer in layers if layer.sqnr_db is not None), default=None),
        over=_over(layers),
    )


def _together(
    layers: Sequence[LayerReport], speedups: Sequence[float | None], dense_ms: float | None
) -> float | None:
    """Dense over sparse time of all layers, from the speed-up of each."""
    if len(layers) == 1:
        return speedups[0]
    if dense_ms is None or None in speedups:
        return None
    times = [
        (layer.dense_ms or 0.0) / speedup
        for layer, speedup in zip(layers, speedups, strict=True)
        if speedup
    ]
    return dense_ms / sum(times) if sum(times) > 0 else None


def _over(layers: Sequence[LayerReport]) -> dict[str, float]:
    """The time of each rival of all layers over theirs; none of one that some had not."""
    times = [layer.sparse_ms or 0.0 for layer in layers]
    whole = sum(times)
    return {
        name: sum(layer.over[name] * ms for layer, ms in zip(layers, times, strict=True)) / whole
        for name in layers[0].over
        if whole > 0 and all(name in layer.over for layer in layers)
    }


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _starred(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _shared(names: Sequence[str]) -> str:
    """The name with a star at each number in which they differ."""
    parts = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(own[0] if len(set(own)) == 1 else "*" for own in parts)
