"""Golden inputs and outputs in a model file, as csrc/runtime/FORMAT.md has them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from sparseinfer.export.aligned import aligned_size, bytes_of, new_memory
from sparseinfer.native import seal_model

__all__ = ["add_golden", "own_outputs"]

TOTAL_BYTES, GOLDEN_BYTES = 16, 56
"""Where the header has them."""


def add_golden(
    file: Tensor, inputs: Sequence[Tensor], outputs: Sequence[Tensor], bounds: Sequence[float]
) -> Tensor:
    """A model file that carries these inputs and what they give, in aligned memory of its own.

    `bounds` are how far an element of each output may be from the golden one. The library checks
    that tensors are those of the model.

    Raises:
        ValueError: they are not, or a bound is negative or not finite.

    Example:
        >>> from sparseinfer.export.file import write_graph
        >>> from sparseinfer.export.graph import Graph, Node, Value
        >>> x, y = Value("x", (2,)), Value("y", (2,))
        >>> file = write_graph(Graph([x], [Node("add", "", [x, x], y)], [y]), b"{}")
        >>> whole = add_golden(file, [torch.ones(2)], [2 * torch.ones(2)], [1e-6])
        >>> len(whole) - len(file)
        192
    """
    parts = [_bytes(torch.tensor(bounds, dtype=torch.float32, device="cpu"))]
    parts += [_bytes(tensor) for tensor in (*inputs, *outputs)]
    whole = new_memory(len(file) + sum(map(len, parts)))
    at = 0
    for part in (file, *parts):
        whole[at : at + len(part)] = part
        at += len(part)
    _put(whole, TOTAL_BYTES, len(whole))
    _put(whole, GOLDEN_BYTES, len(whole) - len(file))
    seal_model(whole.data_ptr(), len(whole))
    return whole


def own_outputs(
    given: Sequence[Tensor], pairs: Sequence[tuple[Tensor, float]], least: float
) -> list[tuple[Tensor, float]]:
    """What a rounded engine gave, within its distance from what was to be given.

    `pairs` are the exact outputs, whose bounds do not count here; `least` is a share of the largest
    element by which any machine may differ.

    Example:
        >>> own_outputs([torch.tensor([1.5])], [(torch.tensor([1.0]), 0.0)], 0.0)
        [(tensor([1.5000], dtype=torch.float64), 0.5)]
    """
    return [
        (y.double(), float((y.double() - true).abs().max()) + least * float(y.abs().max()))
        for y, (true, _) in zip(given, pairs, strict=True)
    ]


def _bytes(tensor: Tensor) -> Tensor:
    """The elements, and zeros up to where the next tensor may begin."""
    tensor = tensor.detach()
    plain = tensor.float() if tensor.is_floating_point() else tensor
    own = bytes_of(plain)
    return torch.nn.functional.pad(own, (0, aligned_size(len(own)) - len(own)))


def _put(file: Tensor, at: int, number: int) -> None:
    file[at : at + 8] = torch.frombuffer(bytearray(struct.pack("<Q", number)), dtype=torch.uint8)
