"""Calibration data on the command line: arrays in files, as the batches that compile takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseinfer.commands.output import UserError, of_file
from sparseinfer.commands.source import read_array

if TYPE_CHECKING:
    import torch

__all__ = ["calibration_of"]

FORMS = "a .npy file, a folder of .npy files, or a .safetensors file of the inputs by name"


def calibration_of(path: Path) -> list[Any]:
    """Batches of inputs: an array of samples, a folder of such, or an array for each input.

    Raises:
        UserError: it is none of these, is empty, or cannot be read.
    """
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        if not files:
            raise UserError(f"{path}: expected .npy files, got none; try numpy.save for each batch")
        return [(read_array(file),) for file in files]
    if path.suffix == ".npy":
        return [(read_array(path),)]
    if path.suffix == ".safetensors":
        return [_by_name(path)]
    if not path.exists():
        raise UserError(f"{path}: No such file or folder; try {FORMS}")
    raise UserError(f"expected {FORMS} as --calibration, got {str(path)!r}; try numpy.save")


def _by_name(path: Path) -> dict[str, torch.Tensor]:
    from sparseinfer.checkpoints.checkpoint import open_checkpoint
    from sparseinfer.checkpoints.errors import CheckpointError

    try:
        found = dict(open_checkpoint(path).tensors)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise of_file(error) from error
    if not found:
        raise UserError(f"{path}: expected tensors by the names of inputs, got none; try x=...")
    return found
