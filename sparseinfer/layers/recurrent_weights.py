"""The weights of torch's recurrent layers as one matrix, and back.

A recurrent layer has two weights a layer and direction. Whatever looks at layers with one weight
(scan, decide, report) sees them side by side: directions are rows, layers are columns, and within a
layer W_ih stands left of W_hh.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GATES", "matrix_shape", "names", "parts", "rebuild", "side_by_side"]

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
"""Rows of a weight for each hidden unit, by `nn.RNNBase.mode`."""


def parts(layer: Any) -> Iterator[tuple[str, str]]:
    """The weights in torch's order: (`ih` or `hh`, `l0`), with `_reverse` in the second direction.

    Example:
        >>> list(parts(nn.LSTM(4, 8)))
        [('ih', 'l0'), ('hh', 'l0')]
    """
    for number in range(layer.num_layers):
        for direction in ("", "_reverse")[: 2 if layer.bidirectional else 1]:
            for part in ("ih", "hh"):
                yield part, f"l{number}{direction}"


def names(layer: Any, kind: str = "weight") -> list[str]:
    """Torch's names of the weights, or of the biases (`kind` "bias"), in torch's order.

    Example:
        >>> names(nn.GRU(4, 8))
        ['weight_ih_l0', 'weight_hh_l0']
    """
    if kind == "bias" and not layer.bias:
        return []
    return [f"{kind}_{part}_{suffix}" for part, suffix in parts(layer)]


def _columns(layer: Any) -> list[int]:
    """Inputs of each layer."""
    directions = 2 if layer.bidirectional else 1
    return [layer.input_size] + [layer.hidden_size * directions] * (layer.num_layers - 1)


def matrix_shape(layer: Any) -> tuple[int, int]:
    """Rows and columns of all weights side by side.

    Example:
        >>> matrix_shape(nn.LSTM(4, 8, num_layers=2, bidirectional=True))
        (64, 36)
    """
    directions = 2 if layer.bidirectional else 1
    rows = GATES[layer.mode] * layer.hidden_size * directions
    return rows, sum(inputs + layer.hidden_size for inputs in _columns(layer))


def side_by_side(layer: Any, weights: Mapping[str, Tensor]) -> Tensor:
    """Put the weights, by torch's names, into one matrix.

    Example:
        >>> layer = nn.GRU(4, 8)
        >>> side_by_side(layer, dict(layer.named_parameters())).shape
        torch.Size([24, 12])
    """
    columns = []
    for number in range(layer.num_layers):
        rows = [
            torch.cat([weights[f"weight_{part}_l{number}{way}"] for part in ("ih", "hh")], dim=1)
            for way in ("", "_reverse")[: 2 if layer.bidirectional else 1]
        ]
        columns.append(torch.cat(rows))
    return torch.cat(columns, dim=1)


def rebuild(like: Any, matrix: Tensor, biases: Mapping[str, Tensor]) -> nn.RNNBase:
    """A plain layer with the arguments of `like` (dense or sparse) and these tensors, no gradients.

    Example:
        >>> rebuild(nn.RNN(4, 8, bias=False), torch.ones(8, 12), {}).weight_hh_l0.shape
        torch.Size([8, 8])
    """
    cls = {"LSTM": nn.LSTM, "GRU": nn.GRU}.get(like.mode, nn.RNN)
    options = {"nonlinearity": like.mode.removeprefix("RNN_").lower()} if cls is nn.RNN else {}
    # nn.RNN has its nonlinearity where the others have bias: by keyword.
    dense: Any = cls(
        like.input_size, like.hidden_size, like.num_layers, bias=like.bias,
        batch_first=like.batch_first, dropout=like.dropout, bidirectional=like.bidirectional,
        device="meta", dtype=matrix.dtype, **options,
    )  # fmt: skip
    widths = [width for inputs in _columns(like) for width in (inputs, like.hidden_size)]
    blocks = iter(matrix.split(widths, dim=1))
    directions = 2 if like.bidirectional else 1
    for number in range(like.num_layers):
        for part in ("ih", "hh"):
            for way, weight in zip(("", "_reverse"), next(blocks).chunk(directions), strict=False):
                own = nn.Parameter(weight.contiguous(), requires_grad=False)
                setattr(dense, f"weight_{part}_l{number}{way}", own)
    for name, bias in biases.items():
        setattr(dense, name, nn.Parameter(bias, requires_grad=False))
    return dense.train(like.training)
