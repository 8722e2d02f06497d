"""The process-wide conditions under which something is timed: torch's switches, the environment.

What the machine is stays the same while a process runs
(`sparseinfer.timing.tuning.describe_machine`); these a program may switch between two conversions,
and each of them decides how fast a dense or a sparse layer runs. So they are read at every use.
"""

from __future__ import annotations

import operator
import os
import sys
from typing import Any

import torch

from sparseinfer.timing.machine import usable_cores

__all__ = ["conditions"]

ENVIRONMENT = (
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "ONEDNN_",
    "DNNL_",
    "CUBLAS_",
    "CUDNN_",
    "NVIDIA_TF32",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "TORCH_COMPILE",
)
"""Beginnings of the variables that the libraries behind torch read."""

_PRECISION = "fp32_precision"

# Of modules that torch replaces by objects with properties, hence by name.
_FLAGS = {
    "mkldnn": ("enabled", "deterministic"),
    "mkldnn.matmul": (_PRECISION,),
    "mkldnn.conv": (_PRECISION,),
    "mkldnn.rnn": (_PRECISION,),
    "cudnn": ("enabled", "benchmark", "benchmark_limit", "deterministic", "allow_tf32"),
    "cudnn.conv": (_PRECISION,),
    "cudnn.rnn": (_PRECISION,),
    "cuda.matmul": (
        _PRECISION,
        "allow_tf32",
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    ),
    "opt_einsum": ("enabled", "strategy"),
    "quantized": ("engine",),
}
"""Attributes of `torch.backends` by the place that has them."""

_CALLS = {
    "flash_sdp": torch.backends.cuda.flash_sdp_enabled,
    "mem_efficient_sdp": torch.backends.cuda.mem_efficient_sdp_enabled,
    "math_sdp": torch.backends.cuda.math_sdp_enabled,
    "cudnn_sdp": torch.backends.cuda.cudnn_sdp_enabled,
    "mha_fastpath": torch.backends.mha.get_fastpath_enabled,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled,
    "nnpack": torch._C._get_nnpack_enabled,
    "interop_threads": torch.get_num_interop_threads,
    "inference": torch.is_inference_mode_enabled,
    "grad": torch.is_grad_enabled,
    "usable_cores": usable_cores,
}


def conditions() -> dict[str, Any]:
    """All that a program may switch for the whole process and that decides how fast layers run.

    These are autocast on each kind of device, the precision of float32 products, the switches of
    oneDNN, cuDNN and cuBLAS, deterministic algorithms, denormals flushed to zero, gradients, the
    defaults of new tensors, the processors that may be used, a tracer, and the variables of the
    environment that the libraries behind torch read. Never remembered; JSON can hold it.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     conditions()["autocast"]["cpu"]
        [True, 'torch.bfloat16']
    """
    found = {name: _plain(call()) for name, call in _CALLS.items()}
    for place, names in _FLAGS.items():
        owner: object = torch.backends
        for part in place.split("."):
            owner = _read(owner, part)
        for name in names:
            value = _plain(_read(owner, name))
            # What nobody set is full precision; setting it back says so in another word.
            found[f"{place}.{name}"] = "ieee" if value == "none" else value
    return {
        **found,
        "matmul_precision": _matmul_precision(),
        "autocast": {
            device: [torch.is_autocast_enabled(device), str(torch.get_autocast_dtype(device))]
            for device in ("cpu", "cuda")
        },
        "fill_uninitialized": _read(torch.utils.deterministic, "fill_uninitialized_memory"),
        "autocast_cache": torch.is_autocast_cache_enabled(),
        "flush_denormal": _flushes_denormals(),
        "default_dtype": str(torch.get_default_dtype()),
        "default_device": str(torch.get_default_device()),
        "traced": sys.gettrace() is not None or sys.getprofile() is not None,
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(ENVIRONMENT)
        },
    }  # fmt: skip


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # Set by the newer switches, which are listed one by one.
        return "by backend"


def _read(owner: object, name: str) -> object:
    """A switch; None where this torch has none of that name, or will not tell."""
    try:
        return getattr(owner, name, None)
    except RuntimeError:
        return None


def _flushes_denormals() -> bool:
    """Whether this thread's arithmetic flushes denormals to zero: torch has no way to ask."""
    return operator.truediv(sys.float_info.min, 2.0) == 0.0


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
