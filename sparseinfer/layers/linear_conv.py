"""Drop-in layers: `nn.Linear`, `nn.Conv1d` and `nn.Conv2d` with a packed weight.

transformers' `Conv1D`, a linear layer whose weight is stored transposed, becomes a `SparseLinear`
too, which has its attribute `nf`.
"""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.common_types import _size_1_t, _size_2_t

from sparseinfer import ops
from sparseinfer.layers.adapters import SAME, Padded, same_padding
from sparseinfer.layers.arrangement import Arrangement
from sparseinfer.layers.base import THREADS_OF_TORCH, SparseLayer
from sparseinfer.layers.dense import CONV1D, class_named, ends_of
from sparseinfer.layers.fx import Proxy, leaf

__all__ = ["SparseConv1d", "SparseConv2d", "SparseLayer", "SparseLinear"]

_Layer = TypeVar("_Layer", bound="SparseLayer")

_linear = ops.linear


class SparseLinear(SparseLayer):
    """`nn.Linear` with a packed weight: y = act(x W^T + bias), x `[..., K]` float32, y `[..., M]`.

    A new layer's weight is all zeros; `from_dense` packs one, `load_state_dict` loads one.

    Raises:
        ValueError: the format or the activation is unknown, or `packed` has another shape.

    Source: Wilkinson, Cheshmi and Mehri Dehnavi, "Register Tiling for Unstructured Sparsity in
    Neural Network Inference", PLDI 2023 (the panel format).

    Example:
        >>> layer = SparseLinear.from_dense(nn.Linear(8, 4))
        >>> layer(torch.zeros(2, 8)).shape
        torch.Size([2, 4])
    """

    dense_type = nn.Linear
    takes_int8 = True
    dense_int8 = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        format: str = "panel",
        activation: str = "none",
        packed: Tensor | None = None,
    ) -> None:
        super().__init__((out_features, in_features), 1, bias, format, activation, packed)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def _like(cls, module: nn.Module, bias: bool, activation: str, packed: Tensor) -> SparseLinear:
        return cls(module.in_features, module.out_features, bias, "", activation, packed)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return leaf(self, input)  # type: ignore[no-any-return]
        # As self.packed and self.bias, at a fifth of the time.
        bias = self._parameters["bias"] if "bias" in self._parameters else self.bias
        buffers = self._buffers
        scale = None if len(buffers) == 1 else buffers.get("input_scale")
        if scale is None and "dense_kernel" not in buffers:
            return _linear(
                input, buffers["packed"], bias, self.out_features, self.activation,
                THREADS_OF_TORCH,
            )  # fmt: skip
        call = ops.linear_dense_int8 if "dense_kernel" in buffers else ops.linear_int8
        return call(
            input, buffers["packed"], bias, scale, buffers.get("input_zero_point"),
            self.out_features, self.activation, THREADS_OF_TORCH,
        )  # fmt: skip

    @classmethod
    def matrix(cls, dense: Any) -> Tensor | None:
        weight = super().matrix(dense)
        return weight if weight is None or class_named(dense, CONV1D) is None else weight.t()

    @classmethod
    def _plain(cls, like: Any, weight: Tensor, bias: bool) -> nn.Module:
        return nn.Linear(weight.shape[1], weight.shape[0], bias)

    @property
    def _of_conv1d(self) -> bool:
        return "nf" in vars(self)

    @property
    def arrangement(self) -> Arrangement:
        return Arrangement(transposed=self._of_conv1d)

    def original(self) -> nn.Module:
        linear: Any = self.to_dense()
        if not self._of_conv1d or self.activation != "none":
            return linear  # type: ignore[no-any-return]
        module, _, name = CONV1D[0].rpartition(".")
        with torch.device("meta"):
            dense: nn.Module = getattr(importlib.import_module(module), name)(
                self.out_features, self.in_features
            )
        dense.register_parameter("weight", nn.Parameter(linear.weight.detach().t().contiguous()))
        dense.register_parameter("bias", linear.bias)
        return dense

    def dense_tensor(self, name: str) -> Tensor:
        weight = super().dense_tensor(name)
        return weight.t().contiguous() if self._of_conv1d else weight

    def _loaded(self, weight: Any) -> Any:
        weight = super()._loaded(weight)
        if self._of_conv1d and isinstance(weight, Tensor) and weight.dim() == 2:
            return weight.t()
        return weight

    def _geometry(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class _SparseConv(SparseLayer):
    """What the convolutions share; arguments and attributes are those of torch's."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any, padding: Any,
        dilation: Any, groups: int, bias: bool, padding_mode: str, format: str, activation: str,
        packed: Tensor | None,
    ) -> None:  # fmt: skip
        with torch.device("meta"):  # torch's own checks of the geometry
            like: Any = self.dense_type(
                in_channels, out_channels, kernel_size, stride, padding, dilation, groups, False,
                padding_mode,
            )  # type: ignore[call-arg]  # fmt: skip
        super().__init__(tuple(like.weight.shape), groups, bias, format, activation, packed)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size: tuple[int, ...] = like.kernel_size
        self.stride: tuple[int, ...] = like.stride
        self.padding: tuple[int, ...] | str = like.padding
        self.dilation: tuple[int, ...] = like.dilation
        self.padding_mode = padding_mode
        self._padding: list[int] = both_ends(self.padding, self.kernel_size, self.dilation)

    takes_int8 = True
    ends: tuple[int, ...] | str | None = None
    """Zeros around the input before `padding`, see `sparseinfer.layers.adapters`."""

    @classmethod
    def _like(cls, module: Any, bias: bool, activation: str, packed: Tensor) -> Any:
        layer: Any = cls(
            module.in_channels, module.out_channels, module.kernel_size, module.stride,
            module.padding, module.dilation, module.groups, bias, module.padding_mode, "",
            activation, packed,
        )  # type: ignore[call-arg, arg-type]  # fmt: skip
        ends = ends_of(module)
        if ends is not None:
            layer.ends = ends
        if isinstance(ends, tuple):
            layer._padding = [own + more for own, more in zip(layer._padding, ends, strict=True)]
        return layer

    @classmethod
    def _plain(cls, like: Any, weight: Tensor, bias: bool) -> nn.Module:
        return cls.dense_type(
            like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding,
            like.dilation, like.groups, bias, like.padding_mode,
        )  # type: ignore[call-arg]  # fmt: skip

    def _call(self, plain: Any, int8: Any, input: Tensor, padding: list[int]) -> Tensor:
        """Call the operator for a float weight, or the one for an int8 one and a scaled input."""
        bias = self._parameters["bias"] if "bias" in self._parameters else self.bias
        options = (
            self.out_channels, self.kernel_size, self.stride, padding, self.dilation, self.groups,
            self.padding_mode, self.activation, THREADS_OF_TORCH,
        )  # fmt: skip
        packed, scale = self._buffers["packed"], self._buffers.get("input_scale")
        if scale is None:
            return plain(input, packed, bias, *options)  # type: ignore[no-any-return]
        zero_point = self._buffers["input_zero_point"]
        return int8(input, packed, bias, scale, zero_point, *options)  # type: ignore[no-any-return]

    def _geometry(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, padding_mode={self.padding_mode}"
            f"{'' if self.ends is None else f', ends={self.ends}'}"
        )


class SparseConv1d(_SparseConv):
    """`nn.Conv1d` with a packed weight: x `[batch, C, w]` or `[C, w]` float32, y `[batch, M, ow]`
    or `[M, ow]`.

    A new layer's weight is all zeros; `from_dense` packs one, `load_state_dict` loads one.

    Raises:
        ValueError: the geometry is none that `nn.Conv1d` takes, the format or the activation is
            unknown, or `packed` has another shape.

    Source: Park et al., "Faster CNNs with Direct Sparse Convolutions and Guided Pruning", ICLR 2017
    (no im2col: offsets in the image take the place of column indices).

    Example:
        >>> layer = SparseConv1d.from_dense(nn.Conv1d(4, 8, 3, padding="same"))
        >>> layer(torch.zeros(2, 4, 10)).shape
        torch.Size([2, 8, 10])
    """

    dense_type = nn.Conv1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_1_t,
        stride: _size_1_t = 1,
        padding: _size_1_t | str = 0,
        dilation: _size_1_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        format: str = "panel",
        activation: str = "none",
        packed: Tensor | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, format, activation, packed,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return leaf(self, input)  # type: ignore[no-any-return]
        if input.dim() == 2:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        return self._call(ops.conv1d, ops.conv1d_int8, input, self._padding)


class SparseConv2d(_SparseConv):
    """`nn.Conv2d` with a packed weight: x `[batch, C, h, w]` or `[C, h, w]` float32, y with M
    channels.

    A new layer's weight is all zeros; `from_dense` packs one, `load_state_dict` loads one.

    Raises:
        ValueError: the geometry is none that `nn.Conv2d` takes, the format or the activation is
            unknown, or `packed` has another shape.

    Source: Park et al., "Faster CNNs with Direct Sparse Convolutions and Guided Pruning", ICLR 2017
    (no im2col: offsets in the image take the place of column indices).

    Example:
        >>> layer = SparseConv2d.from_dense(nn.Conv2d(4, 8, 3, stride=2))
        >>> layer(torch.zeros(2, 4, 9, 9)).shape
        torch.Size([2, 8, 4, 4])
    """

    dense_type = nn.Conv2d

    @classmethod
    def _plain(cls, like: Any, weight: Tensor, bias: bool) -> nn.Module:
        ends = ends_of(like)
        if ends is None:
            return super()._plain(like, weight, bias)
        dense = Padded(
            like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding,
            like.dilation, like.groups, bias, like.padding_mode,
        )  # fmt: skip
        dense.ends = ends
        return dense

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t | str = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        format: str = "panel",
        activation: str = "none",
        packed: Tensor | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, format, activation, packed,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return leaf(self, input)  # type: ignore[no-any-return]
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        if self.ends != SAME:
            return self._call(ops.conv2d, ops.conv2d_int8, input, self._padding)
        more = same_padding(tuple(input.shape[2:]), self.kernel_size, self.stride, self.dilation)
        padding = [one + two for one, two in zip(self._padding, more, strict=True)]
        return self._call(ops.conv2d, ops.conv2d_int8, input, padding)


def both_ends(
    padding: tuple[int, ...] | str, kernel_size: tuple[int, ...], dilation: tuple[int, ...]
) -> list[int]:
    """Padding before and after each axis; 'same' puts the odd element after, as torch does.

    Example:
        >>> both_ends("same", (2, 3), (1, 1))
        [0, 1, 1, 1]
    """
    if padding == "valid":
        return [0] * (2 * len(kernel_size))
    ends = []
    for axis, (taps, step) in enumerate(zip(kernel_size, dilation, strict=True)):
        if isinstance(padding, str):
            total = step * (taps - 1)
            ends += [total // 2, total - total // 2]
        else:
            ends += [padding[axis], padding[axis]]
    return ends
