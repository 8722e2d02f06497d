"""Drop-in `nn.LSTM`, `nn.GRU` and `nn.RNN` whose weights are packed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from sparseinfer.layers.fx import Proxy, leaf
from sparseinfer.layers.gates import SparseGates
from sparseinfer.layers.projected import by_units, from_units, projected_steps
from sparseinfer.layers.side_by_side import Places

__all__ = ["SparseGRU", "SparseLSTM", "SparseRNN", "SparseRecurrent"]

_OF_TORCH: dict[str, Any] = {
    "LSTM": torch._VF.lstm, "GRU": torch._VF.gru,
    "RNN_TANH": torch._VF.rnn_tanh, "RNN_RELU": torch._VF.rnn_relu,
}  # fmt: skip

State = Tensor | tuple[Tensor, Tensor]


class SparseRecurrent(SparseGates):
    """What the recurrent layers share; arguments, attributes and results are those of torch's.

    Each layer and direction has two `SparseLinear`: `ih_l0` makes the gates' input part of all
    steps in one call, `hh_l0` holds the weights of the recurrence, whose steps one native call runs
    (`_reverse` behind the name in the second direction). In the matrix of all weights directions
    are rows, layers are columns, and within a layer W_ih stands left of W_hh.
    """

    dense_type: ClassVar[type[nn.RNNBase]]
    arguments = (
        "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
        "bidirectional", "proj_size",
    )  # fmt: skip
    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int

    @classmethod
    def weights(cls, layer: Any) -> list[str]:
        return [f"weight_{part}_{end}" for end in _suffixes(layer) for part in _parts(layer)]

    @classmethod
    def biases(cls, layer: Any) -> list[str]:
        return [name for name in super().biases(layer) if not name.startswith("bias_hr")]

    @classmethod
    def places(cls, layer: Any) -> Places:
        return [
            [[f"weight_{part}_l{number}{way}" for part in _parts(layer)] for way in _ways(layer)]
            for number in range(layer.num_layers)
        ]

    @classmethod
    def _plain(cls, like: Any, dtype: torch.dtype) -> nn.Module:
        # nn.RNN has its nonlinearity where the others have bias: by keyword.
        own = {"nonlinearity": like.mode.removeprefix("RNN_").lower()} if "RNN" in like.mode else {}
        own |= {"proj_size": like.proj_size} if like.proj_size else {}
        return cls.dense_type(
            like.input_size, like.hidden_size, like.num_layers, bias=like.bias,
            batch_first=like.batch_first, dropout=like.dropout, bidirectional=like.bidirectional,
            device="meta", dtype=dtype, **own,
        )  # type: ignore[call-arg]  # fmt: skip

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, State]:
        """See the forward of torch's layer."""
        if isinstance(input, Proxy):
            return leaf(self, input, hx)  # type: ignore[no-any-return]
        sizes = unsorted = None
        if isinstance(input, PackedSequence):
            x, sizes, order, unsorted = input
            batch = int(sizes[0])
        else:
            x, order = input, None
            if x.dim() not in (2, 3):
                raise ValueError(
                    f"{self.dense_type.__name__}: Expected input to be 2D or 3D, got {x.dim()}D "
                    "instead; try x.unsqueeze(0)"
                )
            batched = x.dim() == 3
            if not batched:
                x = x.unsqueeze(0 if self.batch_first else 1)
            batch = x.shape[0 if self.batch_first else 1]
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got "
                f"{x.shape[-1]}; try reshaping the input"
            )
        if sizes is None and x.shape[1 if self.batch_first else 0] == 0:
            raise RuntimeError(
                "Expected sequence length to be larger than 0 in RNN, got an input of shape "
                f"{list(input.shape)}; try a sequence of at least one step"
            )
        lone = sizes is None and not batched
        states = self._states(hx, x, batch, lone, order)
        y, *states = self._computed(x, states, sizes)
        if unsorted is not None:
            states = [state.index_select(1, unsorted) for state in states]
        if lone:
            y = y.squeeze(0 if self.batch_first else 1)
            states = [state.squeeze(1) for state in states]
        result = y if sizes is None else PackedSequence(y, sizes, order, unsorted)
        return result, (states[0], states[1]) if self.mode == "LSTM" else states[0]

    def _states(
        self, hx: Any, x: Tensor, batch: int, lone: bool, order: Tensor | None
    ) -> list[Tensor]:
        """The initial states: of h, `[layers * directions, batch, H or P]`, and of c in an LSTM."""
        count = self.num_layers * len(_ways(self))
        lstm = self.mode == "LSTM"
        widths = [self.proj_size or self.hidden_size, self.hidden_size][: 2 if lstm else 1]
        if hx is None:
            return [x.new_zeros(count, batch, width) for width in widths]
        given = [hx] if isinstance(hx, Tensor) else list(hx)
        if isinstance(hx, Tensor) is lstm or len(given) != len(widths):
            raise TypeError(
                f"expected hx to be {'a tuple (h, c)' if lstm else 'one tensor'}, got "
                f"{type(hx).__name__} of {len(given)}; try hx=None"
            )
        for number, (state, width) in enumerate(zip(given, widths, strict=True)):
            expected = (count, width) if lone else (count, batch, width)
            if tuple(state.shape) != expected:
                name = f"hidden[{number}]" if lstm else "hidden"
                raise RuntimeError(
                    f"Expected {name} size {expected}, got {list(state.shape)}; try hx=None"
                )
        if lone:
            given = [state.unsqueeze(1) for state in given]
        return given if order is None else [state.index_select(1, order) for state in given]

    @property
    def _cell(self) -> str:
        return self.mode.lower()

    def _steps(self, x: Tensor, states: list[Tensor], sizes: Tensor | None) -> tuple[Tensor, ...]:
        functions = self._functions(x)
        wide = [state.to(torch.float32) for state in states]
        finals: list[list[Tensor]] = [[] for _ in states]
        y, at = x.to(torch.float32), 0
        for layer in range(self.num_layers):
            directions = []
            for way in _ways(self):
                part, h, c = self._run(
                    functions, y, f"_l{layer}{way}", wide[0][at],
                    wide[1][at] if len(wide) == 2 else None, sizes, bool(way), self.batch_first,
                )  # fmt: skip
                directions.append(part)
                for kept, final in zip(finals, (h, c), strict=False):
                    kept.append(final)
                at += 1
            y = directions[0] if len(directions) == 1 else torch.cat(directions, dim=-1)
            if self.training and self.dropout > 0.0 and layer + 1 < self.num_layers:
                y = F.dropout(y, self.dropout)
        return tuple(tensor.to(x.dtype) for tensor in (y, *map(torch.stack, finals)))

    def _unpacked(
        self, x: Tensor, states: list[Tensor], sizes: Tensor | None, biases: list[Any]
    ) -> tuple[Tensor, ...]:
        bias = iter(biases)
        flat: list[Any] = []
        for suffix in _suffixes(self):
            ih, hh, *hr = (
                self._unpacked_weight(f"weight_{part}_{suffix}", x.dtype) for part in _parts(self)
            )
            flat += [ih, hh, *([next(bias), next(bias)] if self.bias else []), *hr]
        hx: Any = states if self.mode == "LSTM" else states[0]
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if sizes is None:
            return _OF_TORCH[self.mode](x, hx, flat, *options, self.batch_first)
        return _OF_TORCH[self.mode](x, sizes, hx, flat, *options)

    def flatten_parameters(self) -> None:
        """Does nothing: packed weights are one buffer each already."""

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        usual = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False,
                 "dropout": 0.0, "bidirectional": False}  # fmt: skip
        for name, value in usual.items():
            if getattr(self, name) != value:
                text += f", {name}={getattr(self, name)}"
        return text


def _parts(layer: Any) -> tuple[str, ...]:
    """The weights of a layer and direction, in torch's order."""
    return ("ih", "hh", "hr") if layer.proj_size else ("ih", "hh")


def _part(name: str) -> str:
    """`ih` of `weight_ih_l0`."""
    return name.split("_")[1]


def _ways(layer: Any) -> tuple[str, ...]:
    """The ends of names by direction."""
    return ("", "_reverse") if layer.bidirectional else ("",)


def _suffixes(layer: Any) -> Iterator[str]:
    """The ends of names by layer and direction, in torch's order."""
    for number in range(layer.num_layers):
        for way in _ways(layer):
            yield f"l{number}{way}"


class SparseLSTM(SparseRecurrent):
    """`nn.LSTM` with packed weights.

    With `proj_size` each layer and direction has a third weight, `hr_l0`, and the rows of the
    matrix of all weights are the hidden units, each with its four gates and its column of W_hr.

    Source: Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 1997.

    Example:
        >>> layer = SparseLSTM.from_dense(nn.LSTM(4, 8, batch_first=True))
        >>> y, (h, c) = layer(torch.zeros(2, 5, 4))
        >>> y.shape, h.shape
        (torch.Size([2, 5, 8]), torch.Size([1, 2, 8]))
    """

    dense_type = nn.LSTM

    @classmethod
    def placed(cls, layer: Any, name: str, weight: Tensor) -> Tensor:
        # W_hr has other rows than the gates' weights; units are rows that all of them have.
        return by_units(_part(name), weight, layer.hidden_size) if layer.proj_size else weight

    @classmethod
    def unplaced(cls, layer: Any, name: str, weight: Tensor, shape: torch.Size) -> Tensor:
        return from_units(_part(name), weight, shape) if layer.proj_size else weight

    def _run(
        self, functions: tuple[Any, Any], x: Tensor, suffix: str, h: Tensor, c: Tensor | None,
        sizes: Tensor | None = None, reverse: bool = False, batch_first: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        if not self.proj_size:
            return super()._run(functions, x, suffix, h, c, sizes, reverse, batch_first)
        assert c is not None
        ih, hh, hr = (
            partial(self._times, functions[0], f"{part}{suffix}") for part in _parts(self)
        )
        return projected_steps(ih(x), hh, hr, h, c, sizes, reverse, batch_first)


class SparseGRU(SparseRecurrent):
    """`nn.GRU` with packed weights.

    Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014.

    Example:
        >>> SparseGRU.from_dense(nn.GRU(4, 8))(torch.zeros(5, 2, 4))[0].shape
        torch.Size([5, 2, 8])
    """

    dense_type = nn.GRU


class SparseRNN(SparseRecurrent):
    """`nn.RNN` with packed weights.

    Source: Elman, "Finding structure in time", Cognitive Science 1990.

    Example:
        >>> SparseRNN.from_dense(nn.RNN(4, 8))(torch.zeros(5, 2, 4))[0].shape
        torch.Size([5, 2, 8])
    """

    dense_type = nn.RNN
