"""How large a model is: in memory, and as it is saved."""

from __future__ import annotations

import io

import torch
from torch import nn


def bytes_in_memory(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones once."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved(model: nn.Module) -> bytes:
    """Return the model's `state_dict` as `torch.save` writes it."""
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    return stream.getvalue()
