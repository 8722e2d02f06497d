"""Block-sparse convolution in Triton: an implicit GEMM over the stored blocks only.

A block of the packed weight is B outputs by a run of B channels of ONE kernel tap, so the inputs of
a tile of output pixels are one masked gather by (pixel, tap, channels): no im2col, and no tap or
channel block that was pruned is touched. Sums are float32, bias and activation are fused.

x is [batch, C, h, w] with any strides. A k x k convolution brings it to channels_last first, where
a run of channels is contiguous (nothing to do for an input that is so already); a 1 x 1 one takes
it as it is, for there the pixels of NCHW are a run as good. y is contiguous NCHW and aliases
nothing. The implicit GEMM is that of Chetlur et al., "cuDNN: Efficient Primitives for Deep
Learning" (2014), restricted to the stored blocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparseinfer.kernels.contract import conv_output_shape
from sparseinfer.kernels.row import Problem
from sparseinfer.kernels.triton.activate import activate
from sparseinfer.kernels.triton.arguments import check_conv
from sparseinfer.kernels.triton.bsr_grid import BsrMeta, bsr_limits


# Pixels change with the batch: specialised on, 1 and the multiples of 16 would compile anew.
@triton.jit(do_not_specialize=["pixels"])
def bsr_conv_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    rows_ptr,
    columns_ptr,
    values_ptr,
    bias_ptr,
    y_ptr,
    pixels,
    M,
    C,
    channel_blocks,
    h,
    w,
    oh,
    ow,
    stride_xb,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    KW: tl.constexpr,
    B: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DOT_IN_FP32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    PARTS: tl.constexpr = B // BLOCK_M
    STEPS: tl.constexpr = B // BLOCK_K
    # One grid axis: a second one ends at 65535. Programs next to each other share the tile of x.
    tiles_m = tl.cdiv(M, B) * PARTS
    tile = tl.program_id(0) % tiles_m
    row_block = tile // PARTS
    in_block = (tile % PARTS) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = row_block * B + in_block
    at_pixel = (tl.program_id(0) // tiles_m) * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_K)
    pixel_ok = at_pixel < pixels
    image = at_pixel // (oh * ow)
    in_image = at_pixel % (oh * ow)
    top = in_image // ow * stride_h - pad_h
    left = in_image % ow * stride_w - pad_w
    # 64 bits: an activation may have more than 2^31 elements.
    image_start = image.to(tl.int64) * stride_xb

    first = tl.load(rows_ptr + row_block)
    last = tl.load(rows_ptr + row_block + 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    # Blocks and the steps within them are one loop, so that loads of the next block overlap too.
    for at in range(0, (last - first) * STEPS):
        block = first + at // STEPS
        k = (at % STEPS) * BLOCK_K + lanes
        column = tl.load(columns_ptr + block)
        tap = column // channel_blocks
        channels = column % channel_blocks * B + k
        r = top + tap // KW * dilation_h
        c = left + tap % KW * dilation_w
        inside = pixel_ok & (r >= 0) & (r < h) & (c >= 0) & (c < w)
        pixel = image_start + r.to(tl.int64) * stride_xh + c.to(tl.int64) * stride_xw
        weights = tl.load(
            values_ptr + block.to(tl.int64) * (B * B) + in_block[:, None] * B + k[None, :]
        )
        x = tl.load(
            x_ptr + channels.to(tl.int64)[:, None] * stride_xc + pixel[None, :],
            mask=(channels < C)[:, None] & inside[None, :],
            other=0.0,
        )
        if DOT_IN_FP32:
            weights = weights.to(tl.float32)
            x = x.to(tl.float32)
        acc = tl.dot(weights, x, acc, input_precision="ieee")

    row_ok = rows < M
    if HAS_BIAS:
        acc += tl.load(bias_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)[:, None]
    y = activate(acc, ACTIVATION)
    start = image.to(tl.int64) * M * (oh * ow) + in_image
    tl.store(
        y_ptr + start[None, :] + rows.to(tl.int64)[:, None] * (oh * ow),
        y.to(y_ptr.dtype.element_ty),
        mask=row_ok[:, None] & pixel_ok[None, :],
    )


@dataclass(frozen=True)
class Config:
    """Tile sizes (output channels, pixels, channels; at most a block's edge), launch options."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# (largest number of pixels of the bucket, config); the last bucket is open.
HALF_CONFIGS = (
    (1024, Config(32, 32, 64, 4, 4)),
    (None, Config(128, 128, 32, 8, 3)),
)
FLOAT_CONFIGS = (
    (1024, Config(32, 32, 32, 4, 3)),
    (None, Config(64, 64, 32, 8, 3)),
)


def config_for(pixels: int, block: int, dtype: torch.dtype) -> Config:
    """The tile configuration for so many output pixels of the batch and blocks of edge `block`.

    Example:
        >>> config_for(49, 64, torch.float16).block_m, config_for(9999, 64, torch.float16).block_m
        (32, 64)
    """
    table = FLOAT_CONFIGS if dtype == torch.float32 else HALF_CONFIGS
    found = next(c for limit, c in table if limit is None or pixels <= limit)
    return Config(
        min(found.block_m, block),
        found.block_n,
        min(found.block_k, block),
        min(found.num_warps, 4) if block <= 32 else found.num_warps,
        found.num_stages,
    )


# Triton decides when the kernel is defined whether it is compiled or interpreted, and not again.
INTERPRETED = not isinstance(bsr_conv_kernel, triton.JITFunction)


def bsr_conv(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: str = "none",
    *,
    meta: BsrMeta,
) -> torch.Tensor:
    """1-D or 2-D cross-correlation on a CUDA device, with W read in place from its blocks.

    Products of float32 are IEEE (no TF32), sums are float32 for every type, and the activation is
    applied before the one rounding to the output's type. The packed buffer is taken as validated:
    its indices are followed.

    Args:
        x: input [batch, C, w] or [batch, C, h, w] of the packed values' type, any strides.
        packed: the packed buffer, contiguous uint8 [bytes], validated (`open_packed`).
        bias: [M] of x's type, or None.
        out_channels: M.
        kernel_size, stride, dilation: an entry an axis; `padding` has two (both ends).
        activation: none, relu, relu6, gelu, gelu_tanh, silu, sigmoid or tanh.
        meta: what `packed` holds; `BsrMeta.from_info(formats.info(packed))`.

    Returns:
        y [batch, M, oh, ow] (or without oh), contiguous, of x's type.

    Raises:
        RuntimeError: devices, types, rank, channels, kernel size or bias do not fit; sizes are none
            that a convolution has; the padding mode is not zeros, groups is not 1, or
            `bsr_limits` names the device.
        ValueError: the activation or padding mode is unknown, or `packed` does not hold the
            sections `meta` describes, aligned to their type.

    Source: Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014.

    Example (needs a GPU, or TRITON_INTERPRET=1 with device = "cpu"):
        >>> from sparseinfer import formats
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> packed = formats.pack(torch.ones(1, 2, 1, 1), "bsr", block=16)
        >>> meta = BsrMeta.from_info(formats.info(packed))
        >>> x = torch.ones(1, 2, 1, 3, device=device)
        >>> one, none = (1, 1), (0, 0, 0, 0)
        >>> bsr_conv(x, packed.to(device), None, 1, one, one, none, one, meta=meta).tolist()
        [[[[2.0, 2.0, 2.0]]]]
    """
    shape = conv_output_shape(
        x, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, activation
    )
    check_conv(
        "bsr.conv.triton", x, packed, bias, out_channels, kernel_size, groups, padding_mode,
        held=(meta.out_features, meta.channels, meta.kernel, meta.groups), dtype=meta.dtype,
        reasons=bsr_limits(Problem("conv", "bsr", x.device, x.dtype, groups=groups)),
        interpreted=INTERPRETED,
    )  # fmt: skip
    starts, columns, values = meta.sections(packed)
    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    oh, ow = (1, *shape[2:])[-2:]
    if len(kernel_size) == 1:
        x = x.unsqueeze(2)
        stride, dilation, padding = (1, *stride), (1, *dilation), (0, 0, *padding)
    if meta.kernel != (1, 1):
        x = x.contiguous(memory_format=torch.channels_last)
    pixels = shape[0] * oh * ow
    config = config_for(pixels, meta.block, x.dtype)
    tiles = meta.row_blocks * (meta.block // config.block_m)
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        bsr_conv_kernel[(tiles * triton.cdiv(pixels, config.block_n),)](
            x,
            starts,
            columns,
            values,
            x if bias is None else bias.contiguous(),
            y,
            pixels,
            out_channels,
            meta.channels,
            meta.channel_blocks,
            x.shape[2],
            x.shape[3],
            oh,
            ow,
            *x.stride(),
            *stride,
            padding[0],
            padding[2],
            *dilation,
            KW=meta.kernel[1],
            B=meta.block,
            HAS_BIAS=bias is not None,
            ACTIVATION=activation,
            # The interpreter's dot is NumPy's matmul, which takes bfloat16's bits for integers.
            DOT_IN_FP32=INTERPRETED,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return y
