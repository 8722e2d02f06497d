"""One checkpoint file: what it is by its first bytes, and its tensors, none of which is trusted."""

from __future__ import annotations

import json
import re
import stat
import struct
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.nesting import find_state_dict
from sparseinfer.switches import switching

__all__ = ["Shard", "is_safetensors", "read_file", "write_file"]

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
    _check_regular(path)
    if is_safetensors(path):
        tensors, metadata = _read_safetensors(path)
        if key is not None:
            raise CheckpointError(
                f"{path}: expected no --key, for safetensors are not nested, got {key!r}; "
                "try without it"
            )
        return Shard(path, "safetensors", tensors, "", tensors, metadata)
    root = _read_torch(path)
    try:
        found, state = find_state_dict(root, key)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"{path}: expected names of tensors as keys, got {name!r}; "
                "try torch.save(model.state_dict(), path)"
            )
        if isinstance(value, Tensor):
            _check_memory(value, f"{path}: {name}")
    return Shard(path, "torch", root, found, state)


def write_file(shard: Shard, path: Path, container: str) -> None:
    """Write a shard's content to `path`, as it is now; safetensors holds only its tensors."""
    if container == "torch":
        torch.save(shard.root, path)
        return
    tensors = {name: value for name, value in shard.tensors.items() if isinstance(value, Tensor)}
    safetensors.torch.save_file(unshared(tensors), path, {"format": "pt", **shard.metadata})


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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


def _check_regular(path: Path) -> None:
    try:
        facts = path.stat()
    except OSError as error:
        raise CheckpointError(
            f"{path}: expected a checkpoint, got none ({error.strerror}); try another path"
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
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: expected a safetensors file, got one that cannot be read ({error}); "
            "try another copy of the file"
        ) from error


def _read_torch(path: Path) -> Any:
    with path.open("rb") as stream:
        if stream.read(4) == _ZIP:
            _check_zip(path)
    try:
        with switching(), warnings.catch_warnings():
            # torch comments on the pickle's protocol.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    # The unpickler meets arbitrary bytes, and raises whatever they lead to.
    except Exception as error:
        raise CheckpointError(f"{path}: {_refusal(error)}") from error


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    # NotImplementedError: a version of the format that is none.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: expected a file by torch.save, got a damaged archive ({error}); "
            "try another copy of the file"
        ) from error
    if any(member.filename.endswith("constants.pkl") for member in members):
        raise CheckpointError(
            f"{path}: expected a state_dict, got a TorchScript archive; "
            "try torch.save(torch.jit.load(path).state_dict(), 'state.pth')"
        )
    # torch.save stores; a compressed member could grow a thousandfold.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(
            f"{path}: expected a file by torch.save, got an archive with compressed members; "
            "try the file inside"
        )


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


def _check_memory(tensor: Tensor, name: str) -> None:
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return
    # An expanded tensor has elements without end, and none of them of its own.
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < reach:
            raise CheckpointError(
                f"{name}: expected a tensor with memory for each element, got shape "
                f"{list(tensor.shape)} with strides {list(tensor.stride())}; "
                "try tensor.contiguous() before saving"
            )
        reach += stride * max(0, size - 1)


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
