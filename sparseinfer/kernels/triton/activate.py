"""The activations that kernels fuse, on float32 accumulators before the one rounding."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(y):
    # exp of a non-positive number cannot overflow.
    e = tl.exp(-tl.abs(y))
    return tl.where(y < 0, e, 1.0) / (1.0 + e)


@triton.jit
def tanh(y):
    # Not libdevice's tanh, which the interpreter lacks. The quotient loses its digits near 0, so
    # below 0.625 the odd polynomial of Cephes' tanhf is taken.
    z = y * y
    p = tl.fma(z, -5.70498872745e-3, 2.06390887954e-2)
    p = tl.fma(z, p, -5.37397155531e-2)
    p = tl.fma(z, p, 1.33314422036e-1)
    p = tl.fma(z, p, -3.33332819422e-1)
    near_zero = tl.fma(y * z, p, y)
    e = tl.exp(-2.0 * tl.abs(y))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(y < 0, -far, far)
    return tl.where(tl.abs(y) < 0.625, near_zero, far)


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    # Selects, not tl.maximum / tl.minimum: those drop NaN, which must reach the output.
    if ACTIVATION == "relu":
        y = tl.where(y < 0, 0.0, y)
    elif ACTIVATION == "relu6":
        y = tl.where(y < 0, 0.0, tl.where(y > 6.0, 6.0, y))
    elif ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.math.erf(y * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 = sigmoid(2u)
        y = y * sigmoid(2.0 * 0.7978845608028654 * (y + 0.044715 * y * y * y))
    elif ACTIVATION == "silu":
        y = y * sigmoid(y)
    elif ACTIVATION == "sigmoid":
        y = sigmoid(y)
    elif ACTIVATION == "tanh":
        y = tanh(y)
    return y
