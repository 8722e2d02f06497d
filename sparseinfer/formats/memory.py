"""The memory of packed buffers: read in place where it is aligned and our own, else copied."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

__all__ = ["check_buffer", "host_bytes", "is_own", "stays"]

_ALIGNMENT = 64


def host_bytes(packed: Tensor) -> Tensor:
    """The buffer as the native library reads it: itself, or a copy that is contiguous, in the
    host's memory, aligned (safetensors places tensors at any address) and of this process alone.

    What is validated has to stay as it is: a file that is mapped, shared memory and an array of
    numpy's change with their owner, and torch counts no write.

    Raises:
        ValueError: `packed` is not a 1-dimensional uint8 tensor, or its memory was released.

    Example:
        >>> host_bytes(torch.zeros(4, dtype=torch.uint8)[::2]).stride()
        (1,)
    """
    check_buffer(packed)
    # What the transforms of torch.func make of a tensor has no memory.
    with temporarily_clear_interpreter_stack():
        memory = packed.detach().cpu().contiguous()
        if not stays(memory):
            memory = torch.empty(memory.numel(), dtype=torch.uint8, device="cpu").copy_(memory)
        return memory


def stays(packed: Tensor) -> bool:
    """Whether a buffer on the host is read where it is: aligned, and memory of this process alone.

    Example:
        >>> stays(torch.zeros(4, dtype=torch.uint8))
        True
    """
    return packed.is_contiguous() and packed.data_ptr() % _ALIGNMENT == 0 and is_own(packed)


def is_own(tensor: Tensor) -> bool:
    """Whether torch allocated the memory of a tensor on the host, for this process alone.

    Example:
        >>> is_own(torch.zeros(4)), is_own(torch.frombuffer(bytearray(4), dtype=torch.uint8))
        (True, False)
    """
    storage = tensor.untyped_storage()
    return storage.resizable() and not storage.is_shared()


def check_buffer(packed: Tensor) -> None:
    """Raise ValueError unless `packed` is a 1-dimensional uint8 tensor with its memory behind it.

    Example:
        >>> check_buffer(torch.zeros(4, dtype=torch.uint8))
    """
    if packed.dtype is not torch.uint8 or packed.dim() != 1:
        raise ValueError(
            f"expected a packed weight as a 1-dimensional uint8 tensor, got {packed.dim()} "
            f"dimensions of {packed.dtype}; try sparseinfer.pack(weight)"
        )
    if packed.numel() and packed.device.type != "meta":
        last = packed.storage_offset() + (packed.numel() - 1) * packed.stride(0)
        if packed.untyped_storage().nbytes() <= last:
            raise ValueError(
                f"expected a packed weight of {packed.numel()} bytes, got one whose storage was "
                "released; try converting the layer again"
            )
