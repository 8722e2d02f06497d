"""What layers of several weights share: each is packed in a layer of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.onnx import is_in_onnx_export

from sparseinfer.formats.handles import open_packed
from sparseinfer.layers.base import THREADS_OF_TORCH
from sparseinfer.layers.dense import effective
from sparseinfer.layers.linear_conv import SparseLinear
from sparseinfer.layers.quantized_input import no_kernel
from sparseinfer.layers.side_by_side import Places, joined, taken_apart
from sparseinfer.ops.memory import require_memory
from sparseinfer.ops.onnx import unpacked
from sparseinfer.ops.run_linear import linear_cpu
from sparseinfer.ops.run_steps import recurrent_cpu
from sparseinfer.ops.shortcut import unobserved

__all__ = ["SparseGates"]

_Layer = TypeVar("_Layer", bound="SparseGates")

_project = torch.ops.sparseinfer.linear.default
_recurrent = torch.ops.sparseinfer.recurrent.default


class SparseGates(nn.Module):
    """What recurrent layers and cells share; arguments, attributes and results are torch's.

    Each weight of torch's layer is a child: `weight_ih_l0` and `bias_ih_l0` there are the
    `SparseLinear` `ih_l0` here, and a state_dict with torch's names loads too. `weight_shape` is
    that of all weights side by side. A class says in `arguments` which attributes of torch's layer
    it takes over, which `weights` there are and their `places` in the one matrix; it computes by
    `_steps`, and by `_unpacked`, torch's own function of the unpacked weights, which has
    derivatives and exports.

    Inputs are float32; float16 and bfloat16 are converted on the way in and out. Gradients reach
    the input, the initial state and the biases, once; they are computed from the unpacked weights.
    """

    dense_type: ClassVar[type[nn.Module]]
    arguments: ClassVar[tuple[str, ...]]
    bias: bool
    dropout: float = 0.0

    def __init__(self, like: Any, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name in self.arguments:
            setattr(self, name, getattr(like, name))
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.train(like.training)

    # ---- the kind: see sparseinfer.layers.kinds.Kind

    @classmethod
    def weights(cls, layer: Any) -> list[str]:
        """Torch's names of the weights of a layer, dense or sparse, in torch's order."""
        raise NotImplementedError

    @classmethod
    def biases(cls, layer: Any) -> list[str]:
        """Torch's names of the biases, in torch's order."""
        if not layer.bias:
            return []
        return [f"bias_{_part(name)}" for name in cls.weights(layer)]

    @classmethod
    def places(cls, layer: Any) -> Places:
        """Where each weight stands in the matrix."""
        raise NotImplementedError

    @classmethod
    def placed(cls, layer: Any, name: str, weight: Tensor) -> Tensor:
        """A weight as it stands in the matrix."""
        return weight

    @classmethod
    def unplaced(cls, layer: Any, name: str, weight: Tensor, shape: torch.Size) -> Tensor:
        """The weight of this shape: undoes `placed`."""
        return weight

    @classmethod
    def _plain(cls, like: Any, dtype: torch.dtype) -> nn.Module:
        """A dense layer with the arguments of `like` (dense or sparse), on the meta device."""
        raise NotImplementedError

    @classmethod
    def matrix(cls, dense: Any) -> Tensor | None:
        """The weights as they take effect, side by side."""
        found = {}
        for name in cls.weights(dense):
            weight = effective(dense, name)
            assert weight is not None
            found[name] = weight
        return cls._joined(dense, found)

    @classmethod
    def _joined(cls, layer: Any, weights: Mapping[str, Tensor]) -> Tensor:
        placed = {name: cls.placed(layer, name, weights[name]) for name in cls.weights(layer)}
        return joined(cls.places(layer), placed)

    @classmethod
    def rebuild(cls, like: Any, matrix: Tensor, biases: Mapping[str, Tensor]) -> nn.Module:
        """A plain dense layer, see `sparseinfer.layers.kinds.Kind.rebuild`."""
        dense = cls._plain(like, matrix.dtype)
        own = {name: dense.get_parameter(name) for name in cls.weights(like)}
        shapes = {name: cls.placed(like, name, weight).shape for name, weight in own.items()}
        weights = {
            name: cls.unplaced(like, name, weight, own[name].shape)
            for name, weight in taken_apart(cls.places(like), shapes, matrix).items()
        }
        for name, tensor in {**weights, **biases}.items():
            setattr(dense, name, nn.Parameter(tensor.contiguous(), requires_grad=False))
        return dense.train(like.training)

    @classmethod
    def tokens(cls, dense: Any, shape: Sequence[int]) -> int:
        """N of an input: sequences times steps."""
        return torch.Size(shape).numel() // dense.input_size  # type: ignore[no-any-return]

    @classmethod
    def refuses(cls, dense: Any) -> str:
        """Why no sparse layer can take the place of this one; empty where one can."""
        return ""

    @classmethod
    def renames(cls, layer: Any) -> dict[str, str]:
        """What a state_dict of a sparse layer calls a dense one's tensors; `layer` is either."""
        weights = {name: f"{_part(name)}.packed" for name in cls.weights(layer)}
        return weights | {name: f"{_part(name)}.bias" for name in cls.biases(layer)}

    @classmethod
    def from_dense(
        cls: type[_Layer], module: nn.Module, format: str = "panel", **params: Any
    ) -> _Layer:
        """Pack the weights of torch's layer, which may be masked or parametrized.

        `params` are the format's, see `sparseinfer.pack`.

        Raises:
            TypeError: `module` is not the dense counterpart of this class, or its weights are not
                float32.
            ValueError: no sparse layer can take its place, or the format is unknown or cannot store
                a weight.

        Example:
            >>> from sparseinfer import SparseLSTM
            >>> SparseLSTM.from_dense(nn.LSTM(4, 8)).hh_l0.weight.shape
            torch.Size([32, 8])
        """
        if not isinstance(module, cls.dense_type):
            raise TypeError(
                f"expected an nn.{cls.dense_type.__name__}, got {type(module).__name__}; "
                "try convert_to_sparse(model)"
            )
        layers: dict[str, nn.Module] = {}
        biases = cls.biases(module)
        for name in cls.weights(module):
            weight, part = effective(module, name), _part(name)
            assert weight is not None
            bias = effective(module, f"bias_{part}") if f"bias_{part}" in biases else None
            own = SparseLinear.rebuild(module, weight, {} if bias is None else {"bias": bias})
            packed = SparseLinear.from_dense(own, format, **params)
            # The steps have no narrow kernel, although a linear layer has.
            if packed.handle.activations != "float32":
                raise no_kernel(cls, packed.handle.activations)
            layers[part] = packed
        return cls(module, layers)

    # ---- computing

    def _steps(self, x: Tensor, states: list[Tensor], sizes: Tensor | None) -> tuple[Tensor, ...]:
        """The outputs and final states, by the kernels."""
        raise NotImplementedError

    def _unpacked(
        self, x: Tensor, states: list[Tensor], sizes: Tensor | None, biases: list[Any]
    ) -> tuple[Tensor, ...]:
        """The same by torch's own function."""
        raise NotImplementedError

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

    @property
    def _cell(self) -> str:
        """The name of the cell, of `sparseinfer.ops.run_steps.CELLS`."""
        raise NotImplementedError

    def _functions(self, x: Tensor) -> tuple[Any, Any]:
        """What computes the gates' input part, and the steps, of an input like x."""
        if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise RuntimeError(
                f"expected a float32 input, got {x.dtype}: the weights are packed as float32; try "
                "x.float()"
            )
        # A call of few steps costs as much as its arithmetic: past the dispatcher where it is free.
        if not torch.compiler.is_compiling():
            first: Any = next(iter(self._modules.values()))
            if unobserved(x, first.packed, None):
                return linear_cpu, recurrent_cpu
        return _project, _recurrent

    def _run(
        self, functions: tuple[Any, Any], x: Tensor, suffix: str, h: Tensor, c: Tensor | None,
        sizes: Tensor | None = None, reverse: bool = False, batch_first: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """The steps of one layer and direction, see `sparseinfer.ops.run_steps`."""
        project, run = functions
        gates = self._times(project, f"ih{suffix}", x)
        recurrence: Any = self._modules[f"hh{suffix}"]
        return run(  # type: ignore[no-any-return]
            gates, recurrence.packed, _wide(recurrence.bias), h, c, sizes, self._cell, reverse,
            batch_first, THREADS_OF_TORCH,
        )  # fmt: skip

    def _times(self, project: Any, part: str, x: Tensor) -> Tensor:
        """x times the weight of a child, plus its bias."""
        own: Any = self._modules[part]
        return project(  # type: ignore[no-any-return]
            x, own.packed, _wide(own.bias), own.out_features, "none", THREADS_OF_TORCH
        )

    def _biases(self) -> list[Any]:
        return [self._child(name).bias for name in self.biases(self)]

    def _unpacked_weight(self, name: str, dtype: torch.dtype) -> Tensor:
        layer = self._child(name)
        return unpacked(layer.packed, layer.weight_shape).to(dtype)

    def _child(self, name: str) -> Any:
        """The layer that holds what torch calls `name`."""
        return self._modules[_part(name)]

    # ---- the packed weights, under torch's names too

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Rows and columns of all weights side by side."""
        rows, columns = self._joined(self, dict(self.plain().named_parameters())).shape
        return rows, columns

    @property
    def nnz(self) -> int:
        """The number of non-zero weights."""
        return sum(
            open_packed(layer.packed).weights.nnz
            for layer in self.children()
            if isinstance(layer, SparseLinear)
        )

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

    def dense_tensor(self, name: str) -> Tensor:
        """A weight or bias as a state_dict of torch's layer holds it."""
        tensor: Tensor = getattr(self, name)
        return tensor.detach()

    def dense_weight(self) -> Tensor:
        """Unpack all weights side by side, of shape `weight_shape`, as `to_dense` takes them apart.

        Example:
            >>> from sparseinfer import SparseGRU
            >>> SparseGRU.from_dense(nn.GRU(4, 8)).dense_weight().shape
            torch.Size([24, 12])
        """
        weights = {name: self._child(name).dense_weight() for name in self.weights(self)}
        return self._joined(self, weights)

    def plain(self) -> nn.Module:
        """A dense layer of the same arguments without values, on the meta device."""
        return self._plain(self, torch.float32)

    def to_dense(self) -> nn.Module:
        """The torch layer that computes the same.

        Example:
            >>> from sparseinfer import SparseLSTM
            >>> SparseLSTM.from_dense(nn.LSTM(4, 8)).to_dense()
            LSTM(4, 8)
        """
        dtype = getattr(self, self.weights(self)[0]).dtype
        biases = {name: getattr(self, name).detach().clone() for name in self.biases(self)}
        dense = self.rebuild(self, self.dense_weight().to(dtype), biases)
        return dense.requires_grad_().train(self.training)

    original = to_dense

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any],
        strict: bool, missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Give each child what a state_dict of torch's layer calls by one name for all."""
        for kind in ("weight", "bias"):
            for end in ("", "_orig", "_mask"):
                for part in map(_part, self.weights(self)):
                    name = f"{prefix}{kind}_{part}{end}"
                    if name in state_dict:
                        state_dict[f"{prefix}{part}.{kind}{end}"] = state_dict.pop(name)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _part(name: str) -> str:
    """The child that holds what torch calls `name`: `ih_l0` of `weight_ih_l0`."""
    return name.partition("_")[2]


def _wide(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(torch.float32)


class _WithGradients(torch.autograd.Function):
    """The native steps forward; backward torch's own function, again from the unpacked weights."""

    @staticmethod
    def forward(ctx: Any, layer: SparseGates, sizes: Any, count: int, *tensors: Any) -> Any:
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
