"""Drop-in `nn.GRUCell`, `nn.LSTMCell` and `nn.RNNCell` whose weights are packed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparseinfer.layers.fx import Proxy, leaf
from sparseinfer.layers.gates import SparseGates
from sparseinfer.layers.side_by_side import Places

__all__ = ["SparseCell", "SparseGRUCell", "SparseLSTMCell", "SparseRNNCell"]


class SparseCell(SparseGates):
    """What the recurrent cells share: one step `[batch, K]` or `[K]` of the layer of that name.

    `ih` and `hh` are the two `SparseLinear`; in the matrix of both W_ih stands left of W_hh.
    """

    arguments: ClassVar[tuple[str, ...]] = ("input_size", "hidden_size", "bias")
    input_size: int
    hidden_size: int

    @classmethod
    def weights(cls, layer: Any) -> list[str]:
        return ["weight_ih", "weight_hh"]

    @classmethod
    def places(cls, layer: Any) -> Places:
        return [[["weight_ih", "weight_hh"]]]

    @classmethod
    def _plain(cls, like: Any, dtype: torch.dtype) -> nn.Module:
        own = {name: getattr(like, name) for name in cls.arguments}
        return cls.dense_type(**own, device="meta", dtype=dtype)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """See the forward of torch's cell."""
        if isinstance(input, Proxy):
            return leaf(self, input, hx)
        return self._step(input, None if hx is None else {"hidden": hx}, 1)[0]

    def _step(self, input: Tensor, given: dict[str, Tensor] | None, count: int) -> list[Tensor]:
        """The `count` states after a step; `given` are those before it, by name."""
        for name, tensor in {"input": input, **(given or {})}.items():
            if tensor.dim() not in (1, 2):
                raise ValueError(
                    f"{self.dense_type.__name__}: Expected {name} to be 1D or 2D, got "
                    f"{tensor.dim()}D instead; try {name}.flatten(0, -2)"
                )
        lone = input.dim() == 1
        x = input.unsqueeze(0) if lone else input
        if x.shape[1] != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {x.shape[1]} expected {self.input_size}; "
                "try reshaping the input"
            )
        shape = (x.shape[0], self.hidden_size)
        if given is None:
            states = [x.new_zeros(shape) for _ in range(count)]
        else:
            states = [state.unsqueeze(0) if lone else state for state in given.values()]
        for number, state in enumerate(states):
            if state.shape[0] != shape[0]:
                raise RuntimeError(
                    f"Input batch size {shape[0]} doesn't match hidden{number} batch size "
                    f"{state.shape[0]}; try hx=None"
                )
            if state.dim() != 2 or state.shape[1] != shape[1]:
                got = state.shape[1] if state.dim() > 1 else "one dimension"
                raise RuntimeError(
                    f"hidden{number} has inconsistent hidden_size: got {got}, expected {shape[1]}; "
                    "try hx=None"
                )
        found = self._computed(x, states, None)
        return [state.squeeze(0) if lone else state for state in found]

    def _steps(self, x: Tensor, states: list[Tensor], sizes: Tensor | None) -> tuple[Tensor, ...]:
        h, *c = (state.to(torch.float32) for state in states)
        functions, one_step = self._functions(x), x.to(torch.float32).unsqueeze(0)
        _, *found = self._run(functions, one_step, "", h, c[0] if c else None)
        return tuple(state.to(x.dtype) for state in found[: len(states)])

    def _unpacked(
        self, x: Tensor, states: list[Tensor], sizes: Tensor | None, biases: list[Any]
    ) -> tuple[Tensor, ...]:
        weights = [self._unpacked_weight(name, x.dtype) for name in self.weights(self)]
        function: Any = getattr(torch._VF, f"{self._cell}_cell")
        found = function(x, states if len(states) == 2 else states[0], *weights, *biases)
        return found if isinstance(found, tuple) else (found,)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        return text if self.bias else f"{text}, bias={self.bias}"


class SparseGRUCell(SparseCell):
    """`nn.GRUCell` with packed weights.

    Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014.

    Example:
        >>> SparseGRUCell.from_dense(nn.GRUCell(4, 8))(torch.zeros(2, 4)).shape
        torch.Size([2, 8])
    """

    dense_type = nn.GRUCell
    _cell = "gru"


class SparseLSTMCell(SparseCell):
    """`nn.LSTMCell` with packed weights.

    Source: Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 1997.

    Example:
        >>> h, c = SparseLSTMCell.from_dense(nn.LSTMCell(4, 8))(torch.zeros(2, 4))
        >>> h.shape, c.shape
        (torch.Size([2, 8]), torch.Size([2, 8]))
    """

    dense_type = nn.LSTMCell
    _cell = "lstm"

    def forward(self, input: Any, hx: Any = None) -> Any:
        """See the forward of torch's cell."""
        if isinstance(input, Proxy):
            return leaf(self, input, hx)
        if hx is not None and (isinstance(hx, Tensor) or len(hx) != 2):
            raise TypeError(
                f"expected hx to be a tuple (h, c), got {type(hx).__name__} of {len(hx)}; try "
                "hx=None"
            )
        given = None if hx is None else {"hx[0]": hx[0], "hx[1]": hx[1]}
        h, c = self._step(input, given, 2)
        return h, c


class SparseRNNCell(SparseCell):
    """`nn.RNNCell` with packed weights.

    Source: Elman, "Finding structure in time", Cognitive Science 1990.

    Example:
        >>> SparseRNNCell.from_dense(nn.RNNCell(4, 8))(torch.zeros(2, 4)).shape
        torch.Size([2, 8])
    """

    dense_type = nn.RNNCell
    arguments = (*SparseCell.arguments, "nonlinearity")
    nonlinearity: str

    @property
    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.nonlinearity == "tanh" else f"{text}, nonlinearity={self.nonlinearity}"
