"""What every drop-in sparse layer is: a packed weight in one buffer, and its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from sparseinfer import formats, ops
from sparseinfer.activations import activation_module, check_choice
from sparseinfer.handles import Handle, open_packed
from sparseinfer.weights import build_dense, effective

__all__ = ["SparseLayer"]

_Layer = TypeVar("_Layer", bound="SparseLayer")


class SparseLayer(nn.Module):
    """What the sparse layers share: a packed weight without gradient, a bias, an activation.

    `packed` is a uint8 buffer, so `state_dict`, `deepcopy` and pickle work as for any module. It is
    validated when it is loaded and before a kernel first reads it. `activation` (a name of
    `sparseinfer.ops.ACTIVATIONS`) is applied by the kernel; `weight_shape` is the dense weight's
    shape.
    """

    dense_type: ClassVar[type[nn.Module]]
    packed: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        groups: int,
        bias: bool,
        format: str,
        activation: str,
        packed: Tensor | None,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ops.ACTIVATIONS)
        self.weight_shape = weight_shape
        self.groups = groups
        self.activation = activation
        if packed is None:
            packed = formats.pack(
                torch.zeros(weight_shape, dtype=torch.float32, device="cpu"), format, groups
            )
        else:
            error = self._shape_error(packed)
            if error is not None:
                raise ValueError(error)
        self.register_buffer("packed", packed)
        zeros = torch.zeros(weight_shape[0], dtype=torch.float32, device=packed.device)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)

    @classmethod
    def from_dense(
        cls: type[_Layer],
        module: nn.Module,
        format: str = "panel",
        activation: str = "none",
        **params: Any,
    ) -> _Layer:
        """Build the sparse layer of a dense one, which may be masked or parametrized.

        `params` are the format's, see `sparseinfer.pack`. Weight and bias are copied; the training
        flag is kept.

        Raises:
            TypeError: `module` is not the dense counterpart of this class, or its weight is not
                float32.
            ValueError: the format is unknown or cannot store the weight.

        Example:
            >>> SparseLinear.from_dense(nn.Linear(8, 4)).packed.dtype
            torch.uint8
        """
        if not isinstance(module, cls.dense_type):
            raise TypeError(
                f"expected an nn.{cls.dense_type.__name__}, got {type(module).__name__}; "
                "try convert_to_sparse(model)"
            )
        weight, bias = effective(module, "weight"), effective(module, "bias")
        if weight is None:
            raise ValueError("expected a layer with a weight, got None; try another layer")
        groups = getattr(module, "groups", 1)
        packed = formats.pack(weight, format, groups, **params).to(weight.device)
        sparse = cls._like(module, bias is not None, activation, packed)
        if sparse.bias is not None and bias is not None:
            sparse.bias.data = bias.clone()
        return sparse.train(module.training)

    @classmethod
    def _like(
        cls: type[_Layer], module: nn.Module, bias: bool, activation: str, packed: Tensor
    ) -> _Layer:
        raise NotImplementedError

    @property
    def handle(self) -> Handle:
        """The validated view of the packed weight."""
        return open_packed(self.packed)

    @property
    def format(self) -> str:
        """The name of the packed format."""
        return self.handle.weights.format

    @property
    def nnz(self) -> int:
        """The number of non-zero weights."""
        return self.handle.weights.nnz

    @property
    def weight(self) -> Tensor:
        """The dense weight, unpacked at every access and read-only: changing it changes nothing."""
        return self.dense_weight()

    def dense_weight(self) -> Tensor:
        """Unpack the float32 weight, in the shape and on the device of the dense layer's.

        Raises:
            ValueError: the packed buffer is not valid.

        Example:
            >>> SparseLinear.from_dense(nn.Linear(8, 4)).dense_weight().shape
            torch.Size([4, 8])
        """
        return formats.unpack(self.packed)

    def to_dense(self) -> nn.Module:
        """The torch layer that computes the same, followed by the activation where there is one.

        Example:
            >>> SparseLinear.from_dense(nn.Linear(8, 4)).to_dense()
            Linear(in_features=8, out_features=4, bias=True)
        """
        bias = None if self.bias is None else self.bias.detach().clone()
        dense = build_dense(self, self.dense_weight(), bias).requires_grad_()
        if self.activation == "none":
            return dense
        return nn.Sequential(dense, activation_module(self.activation)).train(self.training)

    def extra_repr(self) -> str:
        text = f"{self._geometry()}, bias={self.bias is not None}"
        if self.activation != "none":
            text += f", activation={self.activation}"
        if not self._is_real():
            return f"{text}, bytes={self.packed.numel()}"
        density = self.nnz / max(1, self.handle.m * self.handle.k)
        return f"{text}, density={density:.3g}, format={self.format}, bytes={self.packed.numel()}"

    def _geometry(self) -> str:
        raise NotImplementedError

    def _is_real(self) -> bool:
        """Whether `packed` holds bytes: not so on the meta device and under fake tensors."""
        return type(self.packed) is Tensor and not self.packed.is_meta

    def _shape_error(self, packed: Tensor) -> str | None:
        found = formats.info(packed)
        shape, groups = tuple(found["shape"]), found["groups"]
        if shape == self.weight_shape and groups == self.groups:
            return None
        return (
            f"expected a packed weight of shape {list(self.weight_shape)} with "
            f"groups={self.groups}, got {list(shape)} with groups={groups}; try a checkpoint of "
            "the same architecture"
        )

    def _own_packed(self) -> None:
        """Keep `packed` an ordinary tensor: inference tensors are validated at every call."""
        if self.packed.is_inference():
            with torch.inference_mode(False):
                self._buffers["packed"] = self.packed.clone()

    def _apply(self: _Layer, fn: Callable[..., Any], recurse: bool = True) -> _Layer:
        super()._apply(fn, recurse)
        self._own_packed()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._own_packed()
        if self._is_real():
            open_packed(self.packed)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any],
        strict: bool, missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Accept a valid packed weight of this layer's shape, whatever its non-zero count."""
        packed = state_dict.get(f"{prefix}packed")
        if packed is not None:
            try:
                error = self._shape_error(packed)
            except ValueError as invalid:
                error = str(invalid)
            if error is not None:
                error_msgs.append(f"While loading {prefix}packed: {error}")
                return
            # The copy that follows needs a buffer of the same length.
            self._buffers["packed"] = torch.empty_like(packed, device=self.packed.device)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._own_packed()
