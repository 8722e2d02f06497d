"""The float64 oracle: what a kernel must give, and how far rounding may take it from that."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import _C, pack
from sparseinfer.kernels.activations import activation_module

EPS = 2.0**-23

C_FLOAT32 = 1.0
"""c of |y - y64| <= c K eps (|W| |x|) for float32 accumulation."""

ACTIVATION_EPS = 16 * EPS
"""Error that an activation may add, relative to max(1, |z|)."""

ACTIVATION_SLOPE = 1.13
"""No activation is steeper: it is the gelu's."""


def sparse_weight(
    shape: Sequence[int],
    density: float,
    *,
    integers: bool = False,
    nm: tuple[int, int] | None = None,
) -> Tensor:
    """A random float32 weight; with `nm` at most n of every m consecutive input channels are kept.

    A convolution's groups are those of one kernel position.
    """
    if integers:
        weight = torch.randint(1, 5, shape).float() * torch.randint(0, 2, shape).mul(2).sub(1)
    else:
        weight = torch.randn(*shape)
    mask = torch.rand(*shape) < density
    if nm is not None:
        n, m = nm
        for start in range(0, mask.shape[1], m):
            group = mask[:, start : start + m]
            group &= torch.rand(group.shape).argsort(dim=1) < n
    return weight * mask


def packed_along_columns(weight: Tensor, groups: int = 1) -> Tensor:
    """A convolution in nm as before its groups ran along input channels: 2:4 of [M, K]."""
    packed = pack(weight.flatten(1), "nm").numpy()
    # Dimensions, shape and groups of the header.
    packed[20:44] = bytearray(struct.pack("<6I", weight.dim(), *(*weight.shape, 0)[:4], groups))
    _C.seal(packed)
    return torch.from_numpy(packed)


def check_linear(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> None:
    """Assert that y = act(x W^T + bias) within the bound; x and weight are finite."""
    x64, w64 = x.double(), weight.double()
    b64 = torch.zeros(weight.shape[0]).double() if bias is None else bias.double()
    exact = x64 @ w64.T + b64
    size = x64.abs() @ w64.abs().T + b64.abs()
    _check(y, exact, size, weight.shape[1], activation)


def check_conv(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, padding_mode: str = "zeros",
    activation: str = "none",
) -> None:  # fmt: skip
    """Assert that y is the cross-correlation within the bound; `padding` has both ends of axes."""
    ends = [padding[2 * axis + end] for axis in reversed(range(len(stride))) for end in (0, 1)]
    mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = F.pad(x.double(), ends, mode=mode)
    conv = F.conv1d if weight.dim() == 3 else F.conv2d
    options = {"stride": stride, "dilation": dilation, "groups": groups}
    b64 = None if bias is None else bias.double()
    exact = conv(padded, weight.double(), b64, **options)
    b_size = None if bias is None else bias.double().abs()
    size = conv(padded.abs(), weight.double().abs(), b_size, **options)
    _check(y, exact, size, weight[0].numel(), activation)


def _check(y: Tensor, exact: Tensor, size: Tensor, k: int, activation: str) -> None:
    assert y.shape == exact.shape
    bound = C_FLOAT32 * (k + 1) * EPS * size
    if activation != "none":
        bound = ACTIVATION_SLOPE * bound + ACTIVATION_EPS * exact.abs().clamp(min=1)
        exact = activation_module(activation)(exact)
    error = (y.double() - exact).abs()
    excess = error - bound
    assert not (excess > 0).any() and not error.isnan().any(), (
        f"worst error {error.max():.3g} where {bound.flatten()[excess.argmax()]:.3g} is allowed"
    )
