"""Tensors into a file, by torch.save or safetensors; what the system refuses is an OSError."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.tensors import is_plain

__all__ = ["unshared", "write_safetensors", "write_torch"]


def write_torch(content: Any, path: Path) -> None:
    """Write what torch.save writes.

    Raises:
        OSError: the file cannot be written, by which reason ever.
    """
    try:
        with path.open("wb") as stream:
            torch.save(content, stream)
    except RuntimeError as error:
        # torch's writer says only that it stopped, and came there from what the system said.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror, os.fspath(path)) from error


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file of plain tensors, which may share memory.

    Raises:
        CheckpointError: a tensor is not dense, or of a type that the format has not.
        OSError: the file cannot be written.
    """
    for name, tensor in tensors.items():
        if not is_plain(tensor):
            kind = "a quantised one" if tensor.is_quantized else f"{tensor.layout}"
            raise CheckpointError(
                f"{name}: expected a dense tensor, as safetensors holds no others, got {kind} on "
                f"{tensor.device}; try a name in .pth"
            )
    try:
        safetensors.torch.save_file(unshared(tensors), path, dict(metadata))
    except safetensors.SafetensorError as error:
        # The library tells the system's error number in its text alone.
        found = re.search(r"os error (\d+)", str(error))
        code = int(found[1]) if found else errno.EIO
        raise OSError(code, os.strerror(code), os.fspath(path)) from error
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"expected tensors of types that safetensors has, got {error}; try a name in .pth"
        ) from error


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous and none in the memory of another, as safetensors wants them.

    Example:
        >>> row = torch.zeros(2, 2)
        >>> apart = unshared({"a": row, "b": row[0]})
        >>> apart["a"].data_ptr() == apart["b"].data_ptr()
        False
    """
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        storage = own.untyped_storage()
        whole = storage.nbytes() == own.numel() * own.element_size()
        if storage.data_ptr() in seen or not whole:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        result[name] = own
    return result
