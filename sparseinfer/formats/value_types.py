"""The types that packed values may have."""

import torch

__all__ = ["VALUE_TYPES"]

VALUE_TYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Value types the kernels read, under the names the packed buffer's header uses."""
