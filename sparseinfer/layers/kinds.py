"""The kinds of layer: which dense class becomes which sparse one. One row a kind."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sparseinfer.layers.dense import conv1d_of_transformers
from sparseinfer.layers.linear_conv import SparseConv1d, SparseConv2d, SparseLayer, SparseLinear
from sparseinfer.layers.recurrent import SparseGRU, SparseLSTM, SparseRecurrent, SparseRNN
from sparseinfer.layers.transposed import SparseConvTranspose1d, SparseConvTranspose2d

__all__ = ["KINDS", "Kind", "kind_named", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """A kind of layer: its name, torch's class, ours, and the operation in the kernel registry."""

    name: str
    dense: type[nn.Module]
    sparse: type[SparseLayer] | type[SparseRecurrent]
    op: str


KINDS: tuple[Kind, ...] = (
    Kind("linear", nn.Linear, SparseLinear, "linear"),
    Kind("conv1d", nn.Conv1d, SparseConv1d, "conv"),
    Kind("conv2d", nn.Conv2d, SparseConv2d, "conv"),
    Kind("convtranspose1d", nn.ConvTranspose1d, SparseConvTranspose1d, "conv"),
    Kind("convtranspose2d", nn.ConvTranspose2d, SparseConvTranspose2d, "conv"),
    Kind("lstm", nn.LSTM, SparseLSTM, "linear"),
    Kind("gru", nn.GRU, SparseGRU, "linear"),
    Kind("rnn", nn.RNN, SparseRNN, "linear"),
)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind that a dense layer belongs to; None where no sparse layer takes its place.

    transformers' `Conv1D` is a linear layer whose weight is stored transposed.

    Example:
        >>> kind_of(nn.Linear(4, 4)).name
        'linear'
    """
    if conv1d_of_transformers(module) is not None:
        return kind_named("linear")
    return next((kind for kind in KINDS if isinstance(module, kind.dense)), None)


def kind_named(name: str) -> Kind:
    """The row of `KINDS` of this name.

    Example:
        >>> kind_named("conv2d").sparse.__name__
        'SparseConv2d'
    """
    return next(kind for kind in KINDS if kind.name == name)
