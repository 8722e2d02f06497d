"""Calibration data on the command line: arrays in files, as the batches that compile takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseinfer.commands.output import UserError, of_file
from sparseinfer.commands.source import load_numpy, read_array, tensor_of

if TYPE_CHECKING:
    import torch

__all__ = ["calibration_of"]

FORMS = (
    "a .npy file, a .npz or .safetensors file with an array for each input, or a folder of .npy or "
    ".npz files"
)

_IN_ORDER = re.compile(r"arr_(0|[1-9][0-9]{0,8})")
"""What numpy.savez calls arrays that were given to it without names."""


def calibration_of(path: Path) -> list[Any]:
    """Batches of inputs: an array of samples, an array for each input, or a folder of such files.

    Raises:
        UserError: it is none of these, is empty, or cannot be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".npy", ".npz"))
        if not files:
            raise UserError(
                f"{path}: expected .npy or .npz files, got none; try numpy.save for each batch"
            )
        return [_batch(file) for file in files]
    if path.suffix in (".npy", ".npz", ".safetensors"):
        return [_batch(path)]
    if not path.exists():
        raise UserError(f"{path}: No such file or folder; try {FORMS}")
    raise UserError(f"expected {FORMS} as --calibration, got {str(path)!r}; try numpy.save")


def _batch(path: Path) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
    """The inputs of one file, in order or by their names."""
    found: tuple[torch.Tensor, ...] | dict[str, torch.Tensor]
    if path.suffix == ".npy":
        found = (read_array(path),)
    else:
        found = _of_archive(path) if path.suffix == ".npz" else _of_safetensors(path)
    for name, tensor in _named(found):
        if tensor.numel() == 0:
            raise UserError(
                f"{path}{name}: expected samples, got an array of shape {list(tensor.shape)}; try "
                "a few hundred samples of the training data"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{path}{name}: expected finite samples, got {bad} NaN or Inf among "
                f"{tensor.numel()}; try data without them"
            )
    return found


def _named(
    found: tuple[torch.Tensor, ...] | dict[str, torch.Tensor],
) -> list[tuple[str, torch.Tensor]]:
    """The arrays with what they are called after the name of their file."""
    if isinstance(found, dict):
        return [(f": {name}", tensor) for name, tensor in found.items()]
    if len(found) == 1:
        return [("", found[0])]
    return [(f": arr_{place}", tensor) for place, tensor in enumerate(found)]


def _of_archive(path: Path) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
    remedy = "numpy.savez(path, x=...)"
    arrays = load_numpy(path, "an archive of numpy.savez", remedy)
    if not isinstance(arrays, dict):
        raise UserError(f"{path}: expected an archive of numpy.savez, got one array; try {remedy}")
    if not arrays:
        raise UserError(f"{path}: expected an array for each input, got none; try {remedy}")
    tensors = {name: tensor_of(f"{path}: {name}", array) for name, array in arrays.items()}
    places = [_IN_ORDER.fullmatch(name) for name in tensors]
    if not all(places):
        return tensors
    ordered = sorted(tensors, key=lambda name: int(name.removeprefix("arr_")))
    if ordered != [f"arr_{place}" for place in range(len(ordered))]:
        raise UserError(
            f"{path}: expected arr_0 to arr_{len(ordered) - 1}, an array for each input, got "
            f"{', '.join(ordered)}; try {remedy}"
        )
    return tuple(tensors[name] for name in ordered)


def _of_safetensors(path: Path) -> dict[str, torch.Tensor]:
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
