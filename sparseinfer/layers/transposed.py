"""Transposed convolutions with a packed weight, run as one ordinary convolution."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.common_types import _size_1_t, _size_2_t
from torch.onnx import is_in_onnx_export

from sparseinfer import ops
from sparseinfer.formats.handles import open_packed
from sparseinfer.layers.arrangement import Arrangement
from sparseinfer.layers.base import THREADS_OF_TORCH, SparseLayer
from sparseinfer.layers.dense import by_outputs
from sparseinfer.layers.fx import Proxy, leaf
from sparseinfer.layers.phases import axes_of, places, unphased
from sparseinfer.layers.slabs import Slab, slabs_of
from sparseinfer.ops.memory import require_memory

__all__ = ["SparseConvTranspose1d", "SparseConvTranspose2d"]

_Layer = TypeVar("_Layer", bound="_SparseConvTranspose")


_WHOLE_FLOATS = 4 << 20
"""The phases of outputs of so many values stand beside them whole."""


class _SparseConvTranspose(SparseLayer):
    """What the transposed convolutions share; arguments and attributes are those of torch's."""

    transposed = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any, padding: Any,
        output_padding: Any, groups: int, bias: bool, dilation: Any, padding_mode: str, format: str,
        activation: str, packed: Tensor | None,
    ) -> None:  # fmt: skip
        with torch.device("meta"):  # torch's own checks of the geometry
            like: Any = self.dense_type(
                in_channels, out_channels, kernel_size, stride, padding, output_padding, groups,
                False, dilation, padding_mode,
            )  # type: ignore[call-arg]  # fmt: skip
        axes = axes_of(like)
        phases = prod(axis.stride for axis in axes)
        packed_shape = (
            phases * out_channels, in_channels // groups, *(axis.taps for axis in axes)
        )  # fmt: skip
        self._axes = axes  # before `packed` is checked
        super().__init__(
            tuple(like.weight.shape), groups, bias, format, activation, packed, packed_shape,
            out_channels,
        )  # fmt: skip
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size: tuple[int, ...] = like.kernel_size
        self.stride: tuple[int, ...] = like.stride
        self.padding: tuple[int, ...] = like.padding
        self.output_padding: tuple[int, ...] = like.output_padding
        self.dilation: tuple[int, ...] = like.dilation
        self.padding_mode = padding_mode
        self._phases = phases

    @classmethod
    def _like(
        cls: type[_Layer], module: Any, bias: bool, activation: str, packed: Tensor
    ) -> _Layer:
        return cls(
            module.in_channels, module.out_channels, module.kernel_size, module.stride,
            module.padding, module.output_padding, module.groups, bias, module.dilation,
            module.padding_mode, "", activation, packed,
        )  # type: ignore[call-arg, arg-type]  # fmt: skip

    @classmethod
    def _plain(cls, like: Any, weight: Tensor, bias: bool) -> nn.Module:
        return cls.dense_type(
            like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding,
            like.output_padding, like.groups, bias, like.dilation,
        )  # type: ignore[call-arg]  # fmt: skip

    @classmethod
    def _arranged(cls, layer: Any, weight: Tensor) -> Tensor:
        """[C, M/groups, *kernel] as [groups, phases, M/groups, C/groups, *taps] flattened to rows.

        Rows of one phase stand together: those that share a panel then read the same taps of x.
        """
        axes, groups = axes_of(layer), layer.groups
        dense = by_outputs(layer, weight).unflatten(0, (groups, -1))
        phased = weight.new_zeros(
            groups, *(axis.stride for axis in axes), *dense.shape[1:3],
            *(axis.taps for axis in axes),
        )  # fmt: skip
        for tap, place in places(axes):
            phased[place] = dense[tap]
        return phased.view(-1, dense.shape[2], *(axis.taps for axis in axes))

    def _restored(self, weight: Tensor) -> Tensor:
        return unphased(weight, self._axes, self.groups, self.weight_shape)

    @property
    def arrangement(self) -> Arrangement:
        return Arrangement(axes=self._axes, shape=self.weight_shape, groups=self.groups)

    def _shape_error(self, packed: Tensor) -> str | None:
        error = super()._shape_error(packed)
        if error is not None:
            return error
        stored = open_packed(packed).unpack(packed)
        misplaced = int(torch.count_nonzero(stored) - torch.count_nonzero(self._restored(stored)))
        if misplaced == 0:
            return None
        return (
            f"expected a packed weight with zeros where no tap of the kernel is, got {misplaced} "
            "non-zeros there; try a checkpoint of the same architecture"
        )

    def _run(self, input: Tensor, output_size: Sequence[int] | None) -> Tensor:
        if isinstance(input, Proxy):
            return leaf(self, input, output_size)  # type: ignore[no-any-return]
        axes = len(self._axes)
        if input.dim() not in (axes + 1, axes + 2):
            raise RuntimeError(
                f"Expected {axes + 1}D (unbatched) or {axes + 2}D (batched) input to "
                f"conv_transpose{axes}d, but got input of size: {list(input.shape)}; try "
                "input.unsqueeze(0)"
            )
        spare = self._spare(input, output_size)
        if input.dim() == axes + 1:
            return self._batch(input.unsqueeze(0), spare).squeeze(0)
        return self._batch(input, spare)

    def _spare(self, input: Tensor, output_size: Sequence[int] | None) -> Sequence[int]:
        """The output padding of each axis."""
        axes = self._axes
        if output_size is None:
            return self.output_padding
        sizes = list(output_size)
        if len(sizes) == input.dim():
            sizes = sizes[-len(axes) :]
        if len(sizes) != len(axes):
            raise ValueError(
                f"expected an output_size of {len(axes)} or {input.dim()} elements for a "
                f"{input.dim()}D input, got {list(output_size)}; try the last {len(axes)}"
            )
        least = [axis.size(n, 0) for axis, n in zip(axes, input.shape[-len(axes) :], strict=True)]
        spare = [size - start for size, start in zip(sizes, least, strict=True)]
        if any(not 0 <= n < axis.stride for n, axis in zip(spare, axes, strict=True)):
            most = [start + axis.stride - 1 for start, axis in zip(least, axes, strict=True)]
            raise ValueError(
                f"requested an output size of {list(output_size)}, but valid sizes range from "
                f"{least} to {most} (for an input of {list(input.shape)}); try output_size={least}"
            )
        return spare

    def _batch(self, x: Tensor, spare: Sequence[int]) -> Tensor:
        sizes = self._sizes(x, spare)
        ends = [axis.ends(n) for axis, n in zip(self._axes, spare, strict=True)]
        large = x.shape[0] * self.out_channels * prod(sizes) > _WHOLE_FLOATS
        slabs = self._slabs(x, spare) if large else []
        if not slabs:
            return self._slab(x, ends, sizes)
        y = x.new_empty((x.shape[0], self.out_channels, *sizes))
        for slab in slabs:
            whole = y[slab.images].narrow(2, slab.first, min(slab.outputs, sizes[0] - slab.first))
            part = x[slab.images].narrow(2, slab.start, slab.inputs)
            whole.copy_(self._slab(part, [slab.ends, *ends[1:]], list(whole.shape[2:])))
        return y

    def _slab(self, x: Tensor, ends: Sequence[tuple[int, int]], sizes: list[int]) -> Tensor:
        """Outputs of `sizes` from x with the padding `ends` of each axis, both ends."""
        axes = self._axes
        bias: Tensor | None = self.bias
        if bias is not None and self._phases > 1:
            require_memory(bias=bias)
            bias = bias.view(self.groups, 1, -1).expand(-1, self._phases, -1).reshape(-1)
        ones = (1,) * len(axes)
        conv = ops.conv1d if len(axes) == 1 else ops.conv2d
        pads = [n for pair in ends for n in pair]
        options = (ones, pads, ones, self.groups, "zeros", self.activation, THREADS_OF_TORCH)
        shape = self.packed_shape[0], self.packed_shape[2:]
        if self._phases == 1:
            return conv(x, self.packed, bias, *shape, *options)
        # Not held here, so that it goes once it is read.
        return self._interleaved(conv(x, self.packed, bias, *shape, *options), sizes)

    def _slabs(self, x: Tensor, spare: Sequence[int]) -> list[Slab]:
        """How a large output is cut; empty where the graph of the call is recorded."""
        recorded = (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or (torch.is_grad_enabled() and (x.requires_grad or _needs_gradient(self.bias)))
        )
        if recorded or self._phases == 1 or x.device.type != "cpu":
            return []
        axis = self._axes[0]
        rows = [a.rows(n, p) for a, n, p in zip(self._axes, x.shape[2:], spare, strict=True)]
        row_floats = self.packed_shape[0] * prod(rows[1:])
        return slabs_of(
            x.shape[0], x.shape[2], rows[0], row_floats, axis.taps, axis.last, axis.stride,
            torch.get_num_threads(),
        )  # fmt: skip

    def _interleaved(self, y: Tensor, sizes: list[int]) -> Tensor:
        """Phases from channels to where their outputs belong; what lies past the end is dropped."""
        count, (*others, last) = len(sizes), self.stride
        groups, image = (y.shape[0], self.groups), y.shape[2:]
        rows = self.out_channels // self.groups
        # Two floats side by side are a complex number: torch makes those by vectors, and moves them
        # in one piece. ONNX has none.
        paired = last % 2 == 0 and y.dtype is torch.float32 and not is_in_onnx_export()
        if paired:
            halves = y.view(*groups, *others, last // 2, 2, rows, *image)
            phased = torch.complex(*halves.unbind(2 + count))
            del halves
        else:
            phased = y.view(*groups, *self.stride, rows, *image)
        batch = y.shape[0]
        del y  # each step frees what it read: two copies at a time
        # Batch, groups, channels, then each axis of y before its phase.
        pairs = [place for axis in range(count) for place in (3 + count + axis, 2 + axis)]
        ordered = phased.permute(0, 1, 2 + count, *pairs).contiguous()
        del phased
        if paired:
            ordered = torch.view_as_real(ordered)
        shape = [n * stride for n, stride in zip(image, self.stride, strict=True)]
        whole = ordered.view(batch, self.out_channels, *shape)
        if shape == sizes:
            return whole
        for axis, size in enumerate(sizes):
            whole = whole.narrow(2 + axis, 0, size)
        return whole.clone(memory_format=torch.contiguous_format)

    def _sizes(self, x: Tensor, spare: Sequence[int]) -> list[int]:
        """The output's size along each axis, after the checks that need no packed weight."""
        axes = self._axes
        if x.shape[1] != self.in_channels:
            raise RuntimeError(
                f"Given transposed=1, weight of size {list(self.weight_shape)}, expected "
                f"input{list(x.shape)} to have {self.in_channels} channels, but got {x.shape[1]} "
                f"channels instead; try an input with {self.in_channels} channels"
            )
        if any(n >= max(a.stride, a.dilation) for n, a in zip(spare, axes, strict=True)):
            raise RuntimeError(
                "output padding must be smaller than either stride or dilation, but got "
                f"{list(spare)} with stride {list(self.stride)} and dilation "
                f"{list(self.dilation)}; try output_padding=0"
            )
        sizes = [a.size(n, p) for a, n, p in zip(axes, x.shape[2:], spare, strict=True)]
        if min(sizes) < 1 or min(x.shape[2:]) < 1:
            raise RuntimeError(
                f"Given input size per channel: {list(x.shape[2:])}. Calculated output size per "
                f"channel: {sizes}. Output size is too small; try a larger input"
            )
        return sizes

    def _geometry(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, output_padding={self.output_padding}, "
            f"dilation={self.dilation}, groups={self.groups}"
        )


class SparseConvTranspose1d(_SparseConvTranspose):
    """`nn.ConvTranspose1d` with a packed weight: x `[batch, C, w]` or `[C, w]` float32, y
    `[batch, M, ow]` or `[M, ow]`.

    A new layer's weight is all zeros; `from_dense` packs one, `load_state_dict` loads one.

    Raises:
        ValueError: the geometry is none that `nn.ConvTranspose1d` takes, the format or the
            activation is unknown, or `packed` has another shape.

    Source: Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016
    (arXiv 1609.07009; phases as channels of an ordinary convolution).

    Example:
        >>> layer = SparseConvTranspose1d.from_dense(nn.ConvTranspose1d(4, 8, 4, stride=2))
        >>> layer(torch.zeros(2, 4, 10)).shape
        torch.Size([2, 8, 22])
    """

    dense_type = nn.ConvTranspose1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_1_t,
        stride: _size_1_t = 1,
        padding: _size_1_t = 0,
        output_padding: _size_1_t = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: _size_1_t = 1,
        padding_mode: str = "zeros",
        format: str = "panel",
        activation: str = "none",
        packed: Tensor | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias,
            dilation, padding_mode, format, activation, packed,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return self._run(input, output_size)


class SparseConvTranspose2d(_SparseConvTranspose):
    """`nn.ConvTranspose2d` with a packed weight: x `[batch, C, h, w]` or `[C, h, w]` float32,
    y with M channels.

    A new layer's weight is all zeros; `from_dense` packs one, `load_state_dict` loads one.

    Raises:
        ValueError: the geometry is none that `nn.ConvTranspose2d` takes, the format or the
            activation is unknown, or `packed` has another shape.

    Source: Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016
    (arXiv 1609.07009; phases as channels of an ordinary convolution).

    Example:
        >>> layer = SparseConvTranspose2d.from_dense(nn.ConvTranspose2d(4, 8, 4, stride=2))
        >>> layer(torch.zeros(2, 4, 10, 5)).shape
        torch.Size([2, 8, 22, 12])
    """

    dense_type = nn.ConvTranspose2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t = 0,
        output_padding: _size_2_t = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: _size_2_t = 1,
        padding_mode: str = "zeros",
        format: str = "panel",
        activation: str = "none",
        packed: Tensor | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias,
            dilation, padding_mode, format, activation, packed,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return self._run(input, output_size)


def _needs_gradient(bias: Tensor | None) -> bool:
    return bias is not None and bias.requires_grad
