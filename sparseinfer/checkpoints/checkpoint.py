"""A checkpoint as it lies on the disk: one file, or a folder of shards with an index."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.files import Shard, read_file, read_json, write_file
from sparseinfer.checkpoints.foreign import recognise_folder
from sparseinfer.checkpoints.layout import LAYOUT
from sparseinfer.checkpoints.masks import masks_beside
from sparseinfer.checkpoints.plain import Plain, make_plain
from sparseinfer.convert.pretrained import METHOD, WEIGHTS_FILE
from sparseinfer.files import staged, staged_folder, sweep
from sparseinfer.formats.handles import Handle

__all__ = ["CONFIG", "WEIGHTS", "Checkpoint", "open_checkpoint"]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_SINGLE = (WEIGHTS, "pytorch_model.bin", WEIGHTS_FILE)
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx"}
"""Files of a folder that hold weights: they are written anew or left out, never copied."""


@dataclass
class Checkpoint:
    """What was read: its files, and for a folder the index of its shards and its config.json."""

    path: Path
    shards: list[Shard]
    folder: Path | None = None
    index: dict[str, Any] | None = None
    index_name: str = ""
    config: dict[str, Any] | None = None

    def items(self) -> Iterator[tuple[str, Any, Shard]]:
        """Name, value and shard of every entry, in order."""
        for shard in self.shards:
            for name, value in shard.tensors.items():
                yield name, value, shard

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the files."""
        return {name: value for name, value, _ in self.items() if isinstance(value, Tensor)}

    @property
    def others(self) -> list[str]:
        """Keys beside the state_dict (epoch, optimizer); safetensors cannot hold them."""
        return [key for shard in self.shards for key in shard.others]

    def make_plain(
        self,
        look: bool = False,
        keep: Callable[[str, Handle], bool] = lambda name, handle: False,
    ) -> Plain:
        """Make its state_dict plain, see `make_plain`; each tensor stays in the file it was in.

        Raises:
            CheckpointError: as `make_plain`.
        """
        metadata: dict[str, str] = {}
        for shard in self.shards:
            metadata.update(shard.metadata)
            shard.metadata.pop(LAYOUT, None)
        entries = {name: value for name, value, _ in self.items()}
        notes = []
        for shard in self.shards:
            masks, left = masks_beside(shard.root, shard.tensors)
            notes += left
            entries.update({f"{name}_mask": mask for name, mask in masks.items()})
        plain = make_plain(entries, metadata, look, keep)
        plain.notes += notes
        home = {name: shard for name, _, shard in self.items()}
        for shard in self.shards:
            # The same dict: it lies in `root`, and may carry torch's _metadata.
            shard.tensors.clear()
        for name, value in plain.tensors.items():
            home[plain.origin.get(name, name)].tensors[name] = value
        forms = ("sparse-", "packed")
        unpacked = any(source.startswith(forms) for source in plain.sources.values())
        if unpacked and self.config is not None:
            self.config = without_sparsity(self.config)
        for shard in self.shards:
            if shard.path.name == WEIGHTS_FILE:  # now dense, under the name that all find
                shard.path = shard.path.with_name(WEIGHTS)
        return plain

    def write(self, target: Path) -> None:
        """Write it as it is now: a file by the suffix of `target`, a folder with the same shards.

        Where `target` is the path that it was read from, its files are replaced. A folder's other
        files (config, tokenizer) are copied along.

        Raises:
            CheckpointError: the target folder holds something else.
            OSError: a file cannot be written; the target is then as it was.
        """
        if self.folder is None:
            only = self.shards[0]
            container = container_for(target, only.container)
            if target.exists() and os.path.samefile(target, only.path):
                container = only.container
            target.parent.mkdir(parents=True, exist_ok=True)
            # Through a link, as downloads in a cache are, to the file itself.
            with staged([target]) as (unfinished,):
                write_file(only, unfinished, container)
            return
        if target.suffix in _WEIGHT_SUFFIXES and not target.is_dir():
            raise CheckpointError(
                f"{target}: expected a folder as output, as the input is one, got the name of a "
                f"file; try {target.stem}"
            )
        jobs = {shard.path.name: partial(_write_shard, shard) for shard in self.shards}
        if self.config is not None:
            jobs[CONFIG] = partial(_write_json, self.config)
        in_place = target.exists() and os.path.samefile(target, self.folder)
        if not in_place:
            prepare_folder(target)
            for entry in other_files(self.folder):
                jobs.setdefault(entry.name, partial(shutil.copyfile, entry))
        if self.index is not None:
            home = {name: shard.path.name for name, _, shard in self.items()}
            content = {**self.index, "weight_map": home}
            if isinstance(content.get("metadata"), dict):
                size = sum(
                    tensor.numel() * tensor.element_size() for tensor in self.tensors.values()
                )
                content["metadata"] = {**content["metadata"], "total_size": size}
            # The last to appear, as no reader takes shards without it for a checkpoint.
            jobs[self.index_name] = partial(_write_json, content)
        whole: Any = nullcontext(target) if target.is_dir() else staged_folder(target)
        with whole as folder, staged([folder / name for name in jobs]) as unfinished:
            for write, path in zip(jobs.values(), unfinished, strict=True):
                write(path)
        if WEIGHTS in jobs:
            (target / WEIGHTS_FILE).unlink(missing_ok=True)  # what the new file replaces


def _write_shard(shard: Shard, path: Path) -> None:
    write_file(shard, path, shard.container)


def _write_json(content: Any, path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def container_for(path: Path, otherwise: str) -> str:
    """The container that a file's suffix asks for, `safetensors` or `torch`; else `otherwise`.

    Example:
        >>> container_for(Path("model.pth"), "safetensors")
        'torch'
    """
    if path.suffix == ".safetensors":
        return "safetensors"
    return "torch" if path.suffix in (".pth", ".pt", ".bin", ".ckpt") else otherwise


def without_sparsity(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json without its sparsity_config, and without a quantization_config that held only
    that.

    Example:
        >>> without_sparsity({"quantization_config": {"sparsity_config": {}, "version": "0.9"}})
        {}
    """
    result = dict(config)
    if _of(result):
        del result["quantization_config"]
    for key in ("quantization_config", "compression_config"):
        if isinstance(result.get(key), dict) and "sparsity_config" in result[key]:
            rest = {
                name: value for name, value in result.pop(key).items() if name != "sparsity_config"
            }
            if not rest.keys() <= {"quant_method", "version", "transform_config"}:
                result[key] = rest
    return result


def _of(config: dict[str, Any]) -> dict[str, Any]:
    """Our own quantization_config in a config.json; empty where there is none."""
    found = config.get("quantization_config")
    return found if isinstance(found, dict) and found.get("quant_method") == METHOD else {}


def open_checkpoint(path: str | os.PathLike[str], key: str | None = None) -> Checkpoint:
    """Read a checkpoint: a file, an index.json, or a folder with an index or a single weight file.

    `key` names the state_dict within nested ones, dots between levels.

    Raises:
        CheckpointError: it is missing or damaged, see `read_file`; an index names a file outside
            its folder, or a tensor that its shard lacks; a folder has no weights.
    """
    path = Path(path)
    if path.is_file() and not path.name.endswith(".index.json"):
        return Checkpoint(path, [read_file(path, key)])
    if path.name.endswith(".index.json"):
        return _open_index(path, key)
    if not path.is_dir():
        return Checkpoint(path, [read_file(path, key)])
    for name in _INDEXES:
        if (path / name).is_file():
            return _open_index(path / name, key)
    config = _config(path)
    # What save_sparse writes says what is compressed too, and has plain names otherwise.
    found = {} if config is None else _of(config)
    if found.get("packed") and "sparsity_config" not in found:
        raise CheckpointError(
            f"{path}: expected weights under their plain names, got a converted model that "
            "transformers saved; try from_pretrained, and sparseinfer.to_dense"
        )
    for name in _SINGLE:
        if (path / name).is_file():
            shards = [read_file(path / name, key)]
            return Checkpoint(path, shards, folder=path, config=config)
    other = recognise_folder(path) or "none; try the path of a file"
    raise CheckpointError(
        f"{path}: expected a folder with {' or '.join(_SINGLE)} or an index of either, got {other}"
    )


def _open_index(path: Path, key: str | None) -> Checkpoint:
    index = read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names:
        raise CheckpointError(
            f"{path}: expected an index with a weight_map, got none; try another copy of the file"
        )
    for name, file in names.items():
        # A shard is a name, never a path: an index must not reach outside its folder.
        if not isinstance(file, str) or file != Path(file).name or file in ("", ".", ".."):
            raise CheckpointError(
                f"{path}: expected the name of a file beside it for {name}, got {file!r}; "
                "try another copy of the file"
            )
    shards = {file: read_file(path.parent / file, key) for file in dict.fromkeys(names.values())}
    for name, file in names.items():
        if name not in shards[file].tensors:
            raise CheckpointError(
                f"{path}: expected a tensor {name} in {file}, got none; "
                "try another copy of both files"
            )
    count = sum(len(shard.tensors) for shard in shards.values())
    if count != len({name for shard in shards.values() for name in shard.tensors}):
        raise CheckpointError(
            f"{path}: expected each tensor in one file, got one in several; "
            "try another copy of the files"
        )
    folder = path.parent
    return Checkpoint(folder, list(shards.values()), folder, index, path.name, _config(folder))


def _config(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG
    if not path.exists():
        return None
    config = read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object, got {type(config).__name__}; try another copy"
        )
    return config


def prepare_folder(folder: Path) -> None:
    """Prove that a folder for output is not there yet, or empty.

    Raises:
        CheckpointError: it holds something.
        OSError: it is no folder, or cannot be read.
    """
    if not os.path.lexists(folder):
        return
    sweep(folder)
    there = sorted(entry.name for entry in folder.iterdir())
    if there:
        raise CheckpointError(
            f"{folder}: expected an empty folder or none, got one with {there[0]}; "
            "try another folder"
        )


def other_files(folder: Path) -> list[Path]:
    """The files of a folder that go along with its weights: config, tokenizer, licence."""
    return [
        entry
        for entry in sorted(folder.iterdir())
        if entry.is_file()
        and not entry.name.startswith(".")
        and entry.suffix not in _WEIGHT_SUFFIXES
        and not entry.name.endswith(".index.json")
    ]
