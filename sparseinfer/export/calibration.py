"""Scales of a graph's values: what the float32 engine computes on calibration data, observed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparseinfer.convert.calibrate import batches_of
from sparseinfer.export.engine import Engine
from sparseinfer.export.file import write_graph
from sparseinfer.export.graph import Graph, Value
from sparseinfer.export.signature import Signature
from sparseinfer.quantize.activations import ActivationScale
from sparseinfer.quantize.observers import observer

__all__ = ["calibration_batches", "observed_scales"]

CASTS = {torch.float32: ".float()", torch.int64: ".long()", torch.bool: ".bool()"}
"""How other tensors become what a model takes."""

MOST_AT_ONCE = 256
"""Values that one engine gives: a file has up to 1,024 outputs."""


def calibration_batches(data: Any, graph: Graph, signature: Signature) -> list[list[Tensor]]:
    """The inputs of the graph, cut to its own batch, for all of the data.

    `data` is what `sparseinfer.calibrate` takes. A batch of another size than the example's is cut,
    and what is left of it, or a smaller one, filled up with its own samples.

    Raises:
        TypeError: the data is none of its forms, or not float32.
        ValueError: there is no batch, or one of another shape, or with NaN or Inf.

    Example:
        >>> graph = Graph([Value("x", (2, 3))], [], [])
        >>> found = calibration_batches(torch.rand(5, 3), graph, Signature(["x"], ["x"], {}, {}, 0))
        >>> [len(x) for x, in found]
        [2, 2, 2]
    """
    found: list[list[Tensor]] = []
    for place, (args, kwargs) in enumerate(batches_of(data)):
        try:
            tensors = signature.bind(args, kwargs)
            found += _pieces(tensors, graph)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}; that was batch {place} of the calibration data") from None
    if not found:
        raise ValueError(
            "expected calibration data, got no batch; try a few hundred samples of the training "
            "data, and a new iterator where one was used up"
        )
    return found


def _pieces(tensors: Sequence[Any], graph: Graph) -> Iterator[list[Tensor]]:
    whole: list[Tensor] = []
    for value, tensor in zip(graph.inputs, tensors, strict=True):
        if not isinstance(tensor, Tensor) or tensor.dtype != value.dtype:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            kind = str(value.dtype).removeprefix("torch.")
            raise TypeError(
                f"expected {kind} for {value.name}, got {got}; try {CASTS[value.dtype]}"
            )
        if tensor.layout != torch.strided:
            raise TypeError(
                f"expected a dense tensor for {value.name}, got {tensor.layout}; try .to_dense()"
            )
        if tensor.shape[1:] != value.shape[1:] or tensor.dim() != len(value.shape):
            raise ValueError(
                f"expected {list(value.shape)} for {value.name}, of any batch, got "
                f"{list(tensor.shape)}; try batches like the example"
            )
        if tensor.numel() == 0:
            raise ValueError(f"expected elements for {value.name}, got none; try leaving it out")
        whole.append(tensor.detach().cpu())
    longest = max(
        -(-len(x) // value.shape[0]) if x.dim() else 1
        for value, x in zip(graph.inputs, whole, strict=True)
    )
    for piece in range(longest):
        yield [
            x[[at % len(x) for at in range(piece * value.shape[0], (piece + 1) * value.shape[0])]]
            if x.dim() else x
            for value, x in zip(graph.inputs, whole, strict=True)
        ]  # fmt: skip


def observed_scales(
    graph: Graph,
    values: Sequence[Value],
    batches: Sequence[Sequence[Tensor]],
    signature: Signature,
    threads: int,
    method: str = "mse",
) -> dict[Value, ActivationScale]:
    """The scale and zero point of these values of a float32 graph on the batches.

    A value that was zero throughout has the scale 1.

    Raises:
        ValueError: a value was NaN or Inf, or of a range that has no scale.

    Example:
        >>> x = Value("x", (2,))
        >>> given = Signature(["x"], ["x"], {}, {}, 0)
        >>> graph = Graph([x], [], [])
        >>> observed_scales(graph, [x], [[torch.tensor([0.0, 255.0])]], given, 1, "minmax")[x]
        ActivationScale(scale=1.0, zero_point=0)
    """
    found: dict[Value, ActivationScale] = {}
    for first in range(0, len(values), MOST_AT_ONCE):
        some = values[first : first + MOST_AT_ONCE]
        everything = replace(signature, outputs=["list", *range(len(some))])
        engine = Engine(
            write_graph(Graph(graph.inputs, graph.nodes, list(some)), everything.to_json()), threads
        )
        seen = [observer(method) for _ in some]
        for batch in batches:
            named = dict(zip(signature.tensors, batch, strict=True)) | signature.fixed
            for own, value, tensor in zip(seen, some, engine(**named), strict=True):
                try:
                    own.observe(tensor)
                except ValueError as error:
                    raise ValueError(f"{error}; that was {value.name}") from None
        for own, value in zip(seen, some, strict=True):
            zero = own.low == own.high == 0
            try:
                found[value] = ActivationScale(1.0, 0) if zero else own.result()
            except ValueError as error:
                raise ValueError(f"{error}; that was {value.name}") from None
    return found
