"""Triton kernels: what each can run is answered here, without importing Triton.

The kernels live one to a file (`nm_linear.py`) and import Triton when they are first used. This
module holds what the registry and the modules need before that: the description of a packed buffer
and the reasons why a kernel cannot run a problem.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sparseinfer.formats.handles import DEFAULT_SMS
from sparseinfer.formats.value_types import VALUE_TYPES
from sparseinfer.kernels.triton.derived import Derived

__all__ = [
    "NO_KERNEL",
    "VALUE_TYPES",
    "NmMeta",
    "block_reasons",
    "csr_reasons",
    "cuda_reasons",
    "device_reasons",
    "interpreting",
    "unsupported_reasons",
]


GROUP_COLUMNS = 4
"""The m of N:M that the kernels expand: a group becomes two nested `tl.join`s of two lanes each."""


NO_KERNEL: dict[tuple[str, str], str] = {
    ("nm", "conv"): "a 2:4 convolution stays dense, for expanding its weights saves memory traffic "
    "only and cannot win when compute-bound",
}
"""Why there is no kernel on a GPU, by format and operation, where that is a choice."""

MIN_TRITON = (3, 2)
MIN_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class NmMeta:
    """Where an `nm` packed buffer keeps its planes, and what they hold.

    `values` and `positions` are byte offsets into the buffer of `n` value planes [M][G] of type
    `dtype` and of `n` uint8 position planes [M][G], with M = `out_features` rows of
    G = ceil(K / m) groups and K = `in_features`. `sms`, the device's multiprocessors, decides with
    the shape how K is split among programs; `derived` keeps the lane plane of the one buffer that
    this describes.

    Example:
        >>> NmMeta(8, 6, n=2, m=4, dtype=torch.float16, values=128, positions=192).groups
        2
    """

    out_features: int
    in_features: int
    n: int
    m: int
    dtype: torch.dtype
    values: int
    positions: int
    sms: int = DEFAULT_SMS
    derived: Derived = field(default_factory=Derived, init=False, repr=False, compare=False)

    @property
    def groups(self) -> int:
        """Groups of m columns in a row: ceil(K / m)."""
        return -(-self.in_features // self.m)

    @classmethod
    def from_info(cls, info: Mapping[str, Any], sms: int = DEFAULT_SMS) -> NmMeta:
        """Read the description from what `sparseinfer.formats.info` returns for an `nm` buffer.

        Raises:
            ValueError: the buffer is not in the `nm` format.

        Example:
            >>> from sparseinfer import formats
            >>> packed = formats.pack(torch.eye(8), "nm", weights="float16")
            >>> NmMeta.from_info(formats.info(packed)).dtype
            torch.float16
        """
        if info["format"] != "nm":
            raise ValueError(
                f"expected a packed buffer in the nm format, got {info['format']}; "
                "try packing the weight with format='nm'"
            )
        return cls(
            out_features=int(info["m"]),
            in_features=int(info["k"]),
            n=int(info["params"]["n"]),
            m=int(info["params"]["m"]),
            dtype=VALUE_TYPES[info["value_type"]],
            values=int(info["sections"]["values"]),
            positions=int(info["sections"]["positions"]),
            sms=sms,
        )


def interpreting() -> bool:
    """Whether Triton interprets its kernels (`TRITON_INTERPRET=1`), which needs no GPU.

    Example:
        >>> interpreting() or "TRITON_INTERPRET" not in os.environ
        True
    """
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def _triton_reasons() -> list[str]:
    if importlib.util.find_spec("triton") is None:
        return ["expected Triton, got none installed; try pip install triton"]
    version = _triton_version()
    release = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if release < MIN_TRITON:
        least = ".".join(map(str, MIN_TRITON))
        return [f"expected Triton >= {least}, got {version}; try pip install -U triton"]
    return []


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        # Nightly, ROCm and Windows builds are distributed under names of their own. One that no
        # distribution owns was built by its user, and is taken.
        names = importlib.metadata.packages_distributions().get("triton", ())
        return next(map(importlib.metadata.version, names), ".".join(map(str, MIN_TRITON)))


def cuda_reasons(device: torch.device) -> list[str]:
    """Why nothing of ours runs on `device`, Triton or not; empty when it can.

    Example:
        >>> cuda_reasons(torch.device("cpu"))[0].split(";")[0]
        'expected a CUDA device, got cpu'
    """
    if device.type != "cuda":
        return [f"expected a CUDA device, got {device.type}; try moving the module with .cuda()"]
    if not torch.cuda.is_available():
        return ["expected a CUDA device, got none that torch can use; try a CUDA build of torch"]
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        least, got = (".".join(map(str, c)) for c in (MIN_CAPABILITY, capability))
        return [f"expected compute capability >= {least}, got {got}; try a newer GPU"]
    return []


def device_reasons(device: torch.device | str) -> list[str]:
    """Why no Triton kernel runs with tensors on `device`; empty when it can.

    Example:
        >>> device_reasons("meta") == [] or "meta" in device_reasons("meta")[-1]
        True
    """
    return _triton_reasons() + ([] if interpreting() else cuda_reasons(torch.device(device)))


def unsupported_reasons(
    device: torch.device | str, dtype: torch.dtype, *, n: int = 2, m: int = 4
) -> list[str]:
    """Why the `nm.linear.triton` row cannot run such a problem; empty when it can.

    `device` and `dtype` are the input's, and `n`:`m` is the packed weight's pattern. Under
    `TRITON_INTERPRET=1` every device is accepted: the interpreter runs on the host.

    Example:
        >>> unsupported_reasons("cuda", torch.float64)[-1]
        'expected input of float32, float16 or bfloat16, got float64; try input.float()'
    """
    reasons = device_reasons(device)
    if m != GROUP_COLUMNS or not 1 <= n <= m:
        reasons.append(
            f"expected 1:4, 2:4, 3:4 or 4:4 weights, got {n}:{m}; try packing with n=2, m=4"
        )
    return reasons + _type_reasons(dtype)


def csr_reasons(device: torch.device | str, dtype: torch.dtype) -> list[str]:
    """Why the `csr.linear.triton` row cannot run on such an input; empty when it can.

    Example:
        >>> csr_reasons("cuda", torch.float64)[-1].split(",")[-1]
        ' got float64; try input.float()'
    """
    return device_reasons(device) + _type_reasons(dtype)


def block_reasons(device: torch.device | str, dtype: torch.dtype, *, groups: int = 1) -> list[str]:
    """Why the `bsr` rows cannot run on such an input; empty when they can.

    Example:
        >>> block_reasons("cuda", torch.float16, groups=2)[-1]
        'expected groups=1, got groups=2: a block would read one group; try format="panel" on a CPU'
    """
    reasons = device_reasons(device) + _type_reasons(dtype)
    if groups != 1:
        reasons.append(
            f"expected groups=1, got groups={groups}: a block would read one group; "
            'try format="panel" on a CPU'
        )
    return reasons


def _type_reasons(dtype: torch.dtype) -> list[str]:
    if dtype in VALUE_TYPES.values():
        return []
    got = str(dtype).removeprefix("torch.")
    return [f"expected input of float32, float16 or bfloat16, got {got}; try input.float()"]
