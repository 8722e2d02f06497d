"""The arguments of the native kernels, checked: biases, sizes of weights, geometry of two axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseinfer.formats.handles import Handle
from sparseinfer.ops.memory import address

__all__ = ["BEST_ROW", "check_conv_weight", "checked_bias", "on_two_axes", "wrong_features"]

BEST_ROW = -1
"""The native library takes its best usable row."""

_FLOAT32 = torch.float32


def checked_bias(bias: Tensor, m: int) -> Tensor:
    """Give a bias as contiguous memory, which lives as long as what is returned.

    Raises:
        RuntimeError: it is not float32 of shape `[m]`, or its memory was released.

    Example:
        >>> checked_bias(torch.zeros(3), 3).shape
        torch.Size([3])
    """
    if bias.dtype is not _FLOAT32 or bias.shape != (m,):
        raise RuntimeError(
            f"expected a float32 bias of shape [{m}], got {bias.dtype} of shape "
            f"{list(bias.shape)}; try bias=None or module.float()"
        )
    address(bias, "bias")
    return bias.contiguous()


def wrong_features(x: Tensor, handle: Handle) -> RuntimeError:
    """The error for an input whose last dimension is not that of a linear layer's weight.

    Example:
        >>> from sparseinfer.formats.handles import open_packed
        >>> from sparseinfer.formats.packed import pack
        >>> handle = open_packed(pack(torch.eye(4)))
        >>> str(wrong_features(torch.ones(2, 3), handle)).split(":")[0]
        'mat1 and mat2 shapes cannot be multiplied (2x3 and 4x4)'
    """
    shape = list(x.shape)
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return RuntimeError(
        f"mat1 and mat2 shapes cannot be multiplied ({rows}x{shape[-1] if shape else 1} and "
        f"{handle.k}x{handle.m}): expected an input whose last dimension is {handle.k}, got shape "
        f"{shape}; try reshaping the input"
    )


def check_conv_weight(
    handle: Handle, x: Tensor, out_channels: int, kernel_size: Sequence[int], groups: int
) -> None:
    """Check that a packed weight is that of a convolution of these arguments.

    Raises:
        RuntimeError: it is not.

    Example:
        >>> from sparseinfer.formats.handles import open_packed
        >>> from sparseinfer.formats.packed import pack
        >>> handle = open_packed(pack(torch.ones(2, 3, 1)))
        >>> check_conv_weight(handle, torch.ones(1, 3, 8), 2, (1,), 1)
    """
    given = (out_channels, x.shape[1] // groups, *kernel_size)
    if handle.shape == given and handle.weights.groups == groups:
        return
    shape = list(handle.shape)
    if (
        len(shape) != len(given)
        or handle.weights.groups != groups
        or [shape[0], *shape[2:]] != [given[0], *given[2:]]
    ):
        raise RuntimeError(
            f"expected a packed weight with {out_channels} output channels, kernel "
            f"{list(kernel_size)} and groups={groups}, got shape {shape} and "
            f"groups={handle.weights.groups}; try the weight that this layer was built with"
        )
    channels = shape[1] * groups
    raise RuntimeError(
        f"Given groups={groups}, weight of size {shape}, expected input{list(x.shape)} to have "
        f"{channels} channels, but got {x.shape[1]} channels instead; try an "
        f"input with {channels} channels"
    )


_Pair = tuple[int, int]


def on_two_axes(
    x: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[_Pair, _Pair, tuple[int, int, int, int], _Pair]:
    """Image, stride, padding and dilation of a convolution; a 1-D one has images of one row.

    Example:
        >>> on_two_axes(torch.ones(1, 3, 8), (2,), (1, 1), (1,))
        ((1, 8), (1, 2), (0, 0, 1, 1), (1, 1))
    """
    if x.dim() == 3:
        image = (1, x.shape[2])
        stride, padding, dilation = (1, *stride), (0, 0, *padding), (1, *dilation)
    else:
        image = (x.shape[2], x.shape[3])
    top, bottom, left, right = padding
    return image, (stride[0], stride[1]), (top, bottom, left, right), (dilation[0], dilation[1])
