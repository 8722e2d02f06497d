"""Drop-in layers whose weight is one packed buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.common_types import _size_1_t, _size_2_t

from sparseinfer import formats, ops
from sparseinfer.activations import activation_module, check_choice
from sparseinfer.handles import Handle, open_packed
from sparseinfer.weights import build_dense, effective

__all__ = ["SparseConv1d", "SparseConv2d", "SparseLayer", "SparseLinear"]

_Layer = TypeVar("_Layer", bound="SparseLayer")

# Looked up once: `torch.ops` resolves each dot anew at every call.
_linear = torch.ops.sparseinfer.linear.default
_conv1d = torch.ops.sparseinfer.conv1d.default
_conv2d = torch.ops.sparseinfer.conv2d.default

_THREADS_OF_TORCH = 0
"""The operators then ask `torch.get_num_threads()` at every call."""


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
        return _linear(
            input, self.packed, self.bias, self.out_features, self.activation, _THREADS_OF_TORCH
        )

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

    @classmethod
    def _like(
        cls: type[_Layer], module: Any, bias: bool, activation: str, packed: Tensor
    ) -> _Layer:
        return cls(
            module.in_channels, module.out_channels, module.kernel_size, module.stride,
            module.padding, module.dilation, module.groups, bias, module.padding_mode, "",
            activation, packed,
        )  # type: ignore[call-arg, arg-type]  # fmt: skip

    def _options(self) -> tuple[Any, ...]:
        return (
            self.packed, self.bias, self.out_channels, self.kernel_size, self.stride, self._padding,
            self.dilation, self.groups, self.padding_mode, self.activation, _THREADS_OF_TORCH,
        )  # fmt: skip

    def _geometry(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, padding_mode={self.padding_mode}"
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
        if input.dim() == 2:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        return _conv1d(input, *self._options())


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
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        return _conv2d(input, *self._options())


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
