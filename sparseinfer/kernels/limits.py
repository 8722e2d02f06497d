"""What every kernel on a GPU asks of the device."""

from __future__ import annotations

import torch

__all__ = ["MIN_CAPABILITY", "cuda_reasons"]

MIN_CAPABILITY = (8, 0)


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
