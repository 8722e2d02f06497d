"""The CUDA C++ kernels: what each can run is answered here, without loading their library.

The library (csrc/cuda, `SPARSEINFER_CUDA=ON`) is optional, and `library.py` loads it when a kernel
is first called.
"""

from __future__ import annotations

import torch

from sparseinfer.kernels.cuda import library

__all__ = ["MAX_TOKENS", "UNPROVEN", "unsupported_reasons"]

MAX_TOKENS = 64
"""The largest N of a call: past it the dense product is bound by arithmetic, not by memory."""

UNPROVEN = (
    "expected a kernel that a GPU has proven, got one that has only been compiled and emulated; "
    "try nm.linear.triton"
)
"""Why the row `nm.linear.mma_sp` runs nothing yet, whatever `unsupported_reasons` says."""

_MIN_CAPABILITY = (8, 0)


def unsupported_reasons(
    device: torch.device, dtype: torch.dtype, *, n: int, m: int, tokens: int
) -> list[str]:
    """Why the kernel cannot run such a problem here; empty when it can.

    `device` and `dtype` are the input's, `n`:`m` the packed weight's pattern, `tokens` is N.

    Example:
        >>> unsupported_reasons(torch.device("cpu"), torch.float16, n=2, m=4, tokens=1)[-1]
        'expected a CUDA device, got cpu; try moving the module with .cuda()'
    """
    reasons = library.missing_reasons()
    if (n, m) not in ((1, 4), (2, 4)):
        reasons.append(f"expected 1:4 or 2:4 weights, got {n}:{m}; try packing with n=2, m=4")
    if dtype not in (torch.float16, torch.bfloat16):
        got = str(dtype).removeprefix("torch.")
        reasons.append(f"expected input of float16 or bfloat16, got {got}; try input.half()")
    if tokens > MAX_TOKENS:
        reasons.append(f"expected at most {MAX_TOKENS} tokens, got {tokens}; try dense")
    if device.type != "cuda":
        reasons.append(
            f"expected a CUDA device, got {device.type}; try moving the module with .cuda()"
        )
    elif not torch.cuda.is_available():
        reasons.append(
            "expected a CUDA device, got none that torch can use; try a CUDA build of torch"
        )
    elif (capability := torch.cuda.get_device_capability(device)) < _MIN_CAPABILITY:
        least, got = (".".join(map(str, c)) for c in (_MIN_CAPABILITY, capability))
        reasons.append(f"expected compute capability >= {least}, got {got}; try a newer GPU")
    return reasons
