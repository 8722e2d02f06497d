"""Drop-in `nn.LSTM`, `nn.GRU` and `nn.RNN` whose weights are packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.onnx import is_in_onnx_export

from sparseinfer.formats.handles import open_packed
from sparseinfer.layers.base import THREADS_OF_TORCH
from sparseinfer.layers.dense import build_dense, effective
from sparseinfer.layers.fx import Proxy, leaf
from sparseinfer.layers.linear_conv import SparseLinear
from sparseinfer.layers.recurrent_weights import matrix_shape, names, parts, side_by_side
from sparseinfer.ops.memory import require_memory
from sparseinfer.ops.onnx import unpacked
from sparseinfer.ops.run_linear import linear_cpu
from sparseinfer.ops.run_steps import recurrent_cpu
from sparseinfer.ops.shortcut import unobserved

__all__ = ["RECURRENT", "SparseGRU", "SparseLSTM", "SparseRNN", "SparseRecurrent"]

_Layer = TypeVar("_Layer", bound="SparseRecurrent")

_project = torch.ops.sparseinfer.linear.default
_recurrent = torch.ops.sparseinfer.recurrent.default

_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}
_OF_TORCH: dict[str, Any] = {
    "LSTM": torch._VF.lstm, "GRU": torch._VF.gru,
    "RNN_TANH": torch._VF.rnn_tanh, "RNN_RELU": torch._VF.rnn_relu,
}  # fmt: skip

State = Tensor | tuple[Tensor, Tensor]


class SparseRecurrent(nn.Module):
    """What the recurrent layers share; arguments, attributes and results are those of torch's.

    Each layer and direction has two `SparseLinear`: `ih_l0` makes the gates' input part of all
    steps in one call, `hh_l0` holds the weights of the recurrence, whose steps one native call runs
    (`_reverse` behind the name in the second direction). A state_dict with torch's `weight_ih_l0`
    and so on loads too. `weight_shape` is that of all weights side by side: directions are rows,
    layers are columns.

    Inputs are float32; float16 and bfloat16 are converted on the way in and out. Gradients reach
    the input, the initial state and the biases, once; they are computed from the unpacked weights.
    """

    dense_type: ClassVar[type[nn.RNNBase]]

    def __init__(self, like: Any, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if like.proj_size:
            raise ValueError(
                f"expected proj_size=0, got {like.proj_size}; try leaving this layer dense"
            )
        for name in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first",
                     "dropout", "bidirectional", "proj_size"):  # fmt: skip
            setattr(self, name, getattr(like, name))
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.train(like.training)

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int

    @classmethod
    def from_dense(
        cls: type[_Layer], module: nn.Module, format: str = "panel", **params: Any
    ) -> _Layer:
        """Pack the weights of torch's layer, which may be masked or parametrized.

        `params` are the format's, see `sparseinfer.pack`.

        Raises:
            TypeError: `module` is not the dense counterpart of this class, or its weights are not
                float32.
            ValueError: the layer has a proj_size, or the format is unknown or cannot store a
                weight.

        Example:
            >>> SparseLSTM.from_dense(nn.LSTM(4, 8)).hh_l0.weight.shape
            torch.Size([32, 8])
        """
        if not isinstance(module, cls.dense_type):
            raise TypeError(
                f"expected an nn.{cls.dense_type.__name__}, got {type(module).__name__}; "
                "try convert_to_sparse(model)"
            )
        layers: dict[str, nn.Module] = {}
        for part, suffix in parts(module):
            weight = effective(module, f"weight_{part}_{suffix}")
            assert weight is not None
            bias = effective(module, f"bias_{part}_{suffix}") if module.bias else None
            packed = SparseLinear.from_dense(_linear(weight, bias), format, **params)
            layers[f"{part}_{suffix}"] = packed.train(module.training)
        return cls(module, layers)

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
        """The initial states `[layers * directions, batch, H]`: of h, and of c in an LSTM."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        shape = (count, batch, self.hidden_size)
        if hx is None:
            return [x.new_zeros(shape) for _ in range(2 if self.mode == "LSTM" else 1)]
        lstm = self.mode == "LSTM"
        given = [hx] if isinstance(hx, Tensor) else list(hx)
        if isinstance(hx, Tensor) is lstm or len(given) != (2 if lstm else 1):
            raise TypeError(
                f"expected hx to be {'a tuple (h, c)' if lstm else 'one tensor'}, got "
                f"{type(hx).__name__} of {len(given)}; try hx=None"
            )
        expected = (count, self.hidden_size) if lone else shape
        for state in given:
            if tuple(state.shape) != expected:
                raise RuntimeError(
                    f"Expected hidden size {expected}, got {list(state.shape)}; try hx=None"
                )
        if lone:
            given = [state.unsqueeze(1) for state in given]
        return given if order is None else [state.index_select(1, order) for state in given]

    def _computed(
        self, x: Tensor, states: list[Tensor], sizes: Tensor | None
    ) -> tuple[Tensor, ...]:
        if is_in_onnx_export():  # which knows torch's layers
            return self._unpacked(x, states, sizes, self._biases())
        biases = dict(self.named_parameters())
        require_memory(input=x, hx=states[0], cx=states[-1], **biases)
        learned = [x, *states, *biases.values()]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learned):
            if torch.compiler.is_compiling() or (self.training and self.dropout > 0.0):
                return self._unpacked(x, states, sizes, self._biases())
            if torch.is_autocast_enabled("cpu"):
                return self._unpacked(x, states, sizes, self._biases())
            return _WithGradients.apply(self, sizes, len(states), x, *states, *self._biases())
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            with torch.autocast("cpu", enabled=False):
                wide = self._steps(x.float(), [state.float() for state in states], sizes)
            return tuple(tensor.to(dtype) for tensor in wide)
        return self._steps(x, states, sizes)

    def _steps(self, x: Tensor, states: list[Tensor], sizes: Tensor | None) -> tuple[Tensor, ...]:
        dtype = x.dtype
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise RuntimeError(
                f"expected a float32 input, got {dtype}: the weights are packed as float32; try "
                "x.float()"
            )
        # A call of few steps costs as much as its arithmetic: past the dispatcher where it is free.
        direct = not torch.compiler.is_compiling() and unobserved(x, self._first_packed(), None)
        project, run = (linear_cpu, recurrent_cpu) if direct else (_project, _recurrent)
        wide = [state.to(torch.float32) for state in states]
        finals: list[list[Tensor]] = [[] for _ in states]
        y, at = x.to(torch.float32), 0
        for layer in range(self.num_layers):
            directions = []
            for reverse in (False, True)[: 2 if self.bidirectional else 1]:
                suffix = f"l{layer}{'_reverse' if reverse else ''}"
                projection: Any = self.get_submodule(f"ih_{suffix}")
                recurrence: Any = self.get_submodule(f"hh_{suffix}")
                biases = [
                    None if own.bias is None else own.bias.to(torch.float32)
                    for own in (projection, recurrence)
                ]
                gates = project(
                    y, projection.packed, biases[0], projection.out_features, "none",
                    THREADS_OF_TORCH,
                )  # fmt: skip
                part, h, c = run(
                    gates, recurrence.packed, biases[1],
                    wide[0][at], wide[1][at] if len(wide) == 2 else None, sizes,
                    _CELLS[self.mode], reverse, self.batch_first, THREADS_OF_TORCH,
                )  # fmt: skip
                directions.append(part)
                for kept, final in zip(finals, (h, c), strict=False):
                    kept.append(final)
                at += 1
            y = directions[0] if len(directions) == 1 else torch.cat(directions, dim=-1)
            if self.training and self.dropout > 0.0 and layer + 1 < self.num_layers:
                y = F.dropout(y, self.dropout)
        return tuple(tensor.to(dtype) for tensor in (y, *map(torch.stack, finals)))

    def _first_packed(self) -> Tensor:
        layer: Any = self._modules["ih_l0"]
        return layer.packed

    def _unpacked(
        self, x: Tensor, states: list[Tensor], sizes: Tensor | None, biases: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """The same by torch's own layer from the unpacked weights, which has derivatives."""
        flat = []
        for number, (part, suffix) in enumerate(parts(self)):
            layer: Any = self.get_submodule(f"{part}_{suffix}")
            weight = unpacked(layer.packed, layer.weight_shape)
            flat.append(weight.to(x.dtype))
            if self.bias and part == "hh":
                flat += biases[number - 1 : number + 1]
        hx: Any = states if self.mode == "LSTM" else states[0]
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if sizes is None:
            return _OF_TORCH[self.mode](x, hx, flat, *options, self.batch_first)
        return _OF_TORCH[self.mode](x, sizes, hx, flat, *options)

    def _biases(self) -> list[Any]:
        return [
            self.get_submodule(f"{part}_{suffix}").bias for part, suffix in parts(self) if self.bias
        ]

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Rows and columns of all weights side by side."""
        return matrix_shape(self)

    @property
    def nnz(self) -> int:
        """The number of non-zero weights."""
        return sum(
            open_packed(layer.packed).weights.nnz
            for layer in self.children()
            if isinstance(layer, SparseLinear)
        )

    def flatten_parameters(self) -> None:
        """Does nothing: packed weights are one buffer each already."""

    def _owner(self, name: str) -> tuple[nn.Module | None, str]:
        """The layer that holds a weight or bias that torch calls `name`, and its name there."""
        kind, _, rest = name.partition("_")
        if kind not in ("weight", "bias"):
            return None, name
        return self.__dict__.get("_modules", {}).get(rest), kind

    def __getattr__(self, name: str) -> Any:
        # Torch's names, for those who read or assign them.
        owner, own = self._owner(name)
        return super().__getattr__(name) if owner is None else getattr(owner, own)

    def __setattr__(self, name: str, value: Any) -> None:
        owner, own = self._owner(name)
        if owner is None:
            super().__setattr__(name, value)
        else:
            setattr(owner, own, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        owner, own = self._owner(name)
        if owner is None:
            super().register_parameter(name, param)
        else:
            owner.register_parameter(own, param)

    def dense_weight(self) -> Tensor:
        """Unpack all weights side by side, of shape `weight_shape`, as `to_dense` takes them apart.

        Example:
            >>> SparseGRU.from_dense(nn.GRU(4, 8)).dense_weight().shape
            torch.Size([24, 12])
        """
        weights = {}
        for name, (part, suffix) in zip(names(self), parts(self), strict=True):
            layer: Any = self.get_submodule(f"{part}_{suffix}")
            weights[name] = layer.dense_weight()
        return side_by_side(self, weights)

    def to_dense(self) -> nn.Module:
        """The torch layer that computes the same.

        Example:
            >>> SparseLSTM.from_dense(nn.LSTM(4, 8)).to_dense()
            LSTM(4, 8)
        """
        first: Any = self._modules["ih_l0"]
        dense = build_dense(self, self.dense_weight().to(first.weight.dtype), None)
        for name in names(self, "bias"):
            setattr(dense, name, nn.Parameter(getattr(self, name).detach().clone()))
        return dense.requires_grad_().train(self.training)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
                 "bidirectional": False}  # fmt: skip
        for name, value in usual.items():
            if getattr(self, name) != value:
                text += f", {name}={getattr(self, name)}"
        return text

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any],
        strict: bool, missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Give each child what a state_dict of torch's layer calls by one name for all."""
        for kind in ("weight", "bias"):
            for end in ("", "_orig", "_mask"):
                for part, suffix in parts(self):
                    name = f"{prefix}{kind}_{part}_{suffix}{end}"
                    if name in state_dict:
                        renamed = f"{prefix}{part}_{suffix}.{kind}{end}"
                        state_dict[renamed] = state_dict.pop(name)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    return build_dense(nn.Identity(), weight, bias)


class _WithGradients(torch.autograd.Function):
    """The native steps forward; backward torch's own layer, run again from the unpacked weights."""

    @staticmethod
    def forward(ctx: Any, layer: SparseRecurrent, sizes: Any, count: int, *tensors: Any) -> Any:
        ctx.layer, ctx.sizes, ctx.count = layer, sizes, count
        ctx.save_for_backward(*tensors)
        return layer._steps(tensors[0], list(tensors[1 : 1 + count]), sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            # With create_graph. What follows has no graph: a second derivative would lack a term.
            raise RuntimeError(
                "expected a first derivative of a sparse recurrent layer, got create_graph=True; "
                "try layer.to_dense()"
            )
        needed = ctx.needs_input_grad[3:]
        copies = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        x, states, biases = copies[0], copies[1 : 1 + ctx.count], copies[1 + ctx.count :]
        with torch.enable_grad():
            outputs = ctx.layer._unpacked(x, states, ctx.sizes, biases)
        wanted = [copy for copy, need in zip(copies, needed, strict=True) if need]
        found = iter(torch.autograd.grad(outputs, wanted, gradients, allow_unused=True))
        return None, None, None, *(next(found) if need else None for need in needed)


class SparseLSTM(SparseRecurrent):
    """`nn.LSTM` with packed weights.

    Source: Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 1997.

    Example:
        >>> layer = SparseLSTM.from_dense(nn.LSTM(4, 8, batch_first=True))
        >>> y, (h, c) = layer(torch.zeros(2, 5, 4))
        >>> y.shape, h.shape
        (torch.Size([2, 5, 8]), torch.Size([1, 2, 8]))
    """

    dense_type = nn.LSTM


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


RECURRENT: tuple[type[SparseRecurrent], ...] = (SparseLSTM, SparseGRU, SparseRNN)
