"""One checkpoint file: what it is by its first bytes, and its tensors, none of which is trusted."""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.foreign import recognise
from sparseinfer.checkpoints.nesting import find_state_dict
from sparseinfer.checkpoints.pickles import check_archive, check_stream
from sparseinfer.checkpoints.tensors import check_bytes, check_tensors
from sparseinfer.checkpoints.write import write_safetensors, write_torch
from sparseinfer.switches import switching

__all__ = ["Shard", "is_safetensors", "read_entries", "read_file", "write_file"]

_ZIP = b"PK\x03\x04"
_MAX_HEADER = 100_000_000
"""What the safetensors library accepts as the length of a header."""


@dataclass
class Shard:
    """A file of a checkpoint: all of it (`root`), and its state_dict (`tensors`), which lies in it.

    `key` is the state_dict's path in `root`, empty where they are the same. `metadata` is a
    safetensors header's. `tensors` may hold entries that are no tensors.
    """

    path: Path
    container: str
    root: Any
    key: str
    tensors: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def others(self) -> list[str]:
        """The keys beside the state_dict, such as epoch and optimizer."""
        return [str(key) for key in self.root if key != self.key.split(".")[0]] if self.key else []


def is_safetensors(path: Path) -> bool:
    """Whether a file is, or by its name should be, in safetensors.

    Example:
        >>> is_safetensors(Path("model.safetensors"))
        True
    """
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < _MAX_HEADER


def read_file(path: Path, key: str | None = None) -> Shard:
    """Read a file by `torch.save` (with weights_only) or safetensors.

    Raises:
        CheckpointError: the file is missing, empty, damaged, a pickled module or none of the two;
            it holds no state_dict; a tensor has no memory behind it.
    """
    root, metadata = _read(path)
    if metadata is not None:
        if key is not None:
            raise CheckpointError(
                f"{path}: expected no --key, for safetensors are not nested, got {key!r}; "
                "try without it"
            )
        return Shard(path, "safetensors", root, "", root, metadata)
    try:
        # The search looks at the values of dicts within, for they may be masks.
        for part in root.values() if isinstance(root, Mapping) else ():
            if isinstance(part, Mapping):
                check_bytes(part, path.stat().st_size)
        found, state = find_state_dict(root, key)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    for name in state:
        if not isinstance(name, str):
            raise CheckpointError(
                f"{path}: expected names of tensors as keys, got {name!r}; "
                "try torch.save(model.state_dict(), path)"
            )
    try:
        check_tensors(state, path.stat().st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Shard(path, "torch", root, found, state)


def read_entries(path: Path) -> Any:
    """Read what a file by `torch.save` or safetensors holds, with no look for a state_dict in it.

    Raises:
        CheckpointError: as `read_file`, but for what the file holds.
    """
    entries, _ = _read(path)
    if isinstance(entries, Mapping):
        try:
            check_bytes(entries, path.stat().st_size)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return entries


def write_file(shard: Shard, path: Path, container: str) -> None:
    """Write a shard's content to `path`, as it is now; safetensors holds only its tensors.

    Raises:
        CheckpointError, OSError: as `write_safetensors`.
    """
    if container == "torch":
        write_torch(shard.root, path)
        return
    tensors = {name: value for name, value in shard.tensors.items() if isinstance(value, Tensor)}
    write_safetensors(tensors, path, {"format": "pt", **shard.metadata})


def _read(path: Path) -> tuple[Any, dict[str, str] | None]:
    """The content of a file, and the metadata of one in safetensors."""
    _check_regular(path)
    foreign = recognise(path)
    if foreign is not None:
        raise CheckpointError(
            f"{path}: expected a file by torch.save or safetensors, got {foreign}"
        )
    return _read_safetensors(path) if is_safetensors(path) else (_read_torch(path), None)


def _check_regular(path: Path) -> None:
    try:
        facts = path.stat()
    # ValueError: the name has a NUL, or a character that no file name has.
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{path}: expected a checkpoint, got none ({reason}); try another path"
        ) from error
    if not stat.S_ISREG(facts.st_mode):
        raise CheckpointError(f"{path}: expected a regular file, got something else; try its copy")
    if facts.st_size == 0:
        raise CheckpointError(f"{path}: expected a checkpoint, got an empty file; try another copy")


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    # The library checks the header's length, that offsets neither overlap nor leave the file, and
    # that they fit dtypes and shapes.
    try:
        with safetensors.safe_open(path, "pt") as stream:
            # Copies: a tensor mapped to the file kills the process when another one writes there.
            tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}
            return tensors, dict(stream.metadata() or {})
    except MemoryError:
        raise
    # RuntimeError, KeyError: shapes and types that torch has not.
    except Exception as error:
        raise CheckpointError(
            f"{path}: expected a safetensors file, got one that cannot be read ({error}); "
            "try another copy of the file"
        ) from error


def _read_torch(path: Path) -> Any:
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        archive = stream.read(4) == _ZIP
        stream.seek(0)
        try:
            (check_archive if archive else check_stream)(stream, size)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        stream.seek(0)
        try:
            with switching(), warnings.catch_warnings():
                # torch comments on the pickle's protocol.
                warnings.simplefilter("ignore", UserWarning)
                return torch.load(stream, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        # The unpickler meets arbitrary bytes, and raises whatever they lead to.
        except Exception as error:
            if "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise CheckpointError(f"{path}: {_refusal(error)}") from error


def _refusal(error: Exception) -> str:
    text = str(error)
    found = re.search(r"GLOBAL (\S+)", text)
    if found is not None:
        return (
            f"expected tensors only, got a pickle that runs code ({found[1]}); try, where you "
            "trust the file and have its code: torch.save(torch.load(path, weights_only=False)"
            ".state_dict(), 'state.pth')"
        )
    lines = [line for line in text.splitlines() if line.strip()]
    # torch opens with advice to load the file unsafely.
    if len(lines) > 1 and lines[0].startswith("Weights only load failed"):
        lines = lines[1:]
    reason = lines[0][:200] if lines else type(error).__name__
    return (
        f"expected a file by torch.save, got one that cannot be read ({reason}); "
        "try another copy of the file"
    )


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: the file is missing, or is not JSON.
    """
    _check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected JSON, got something else ({error}); try another copy of the file"
        ) from error
