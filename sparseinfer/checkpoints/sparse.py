"""Pruned models in files that are smaller: compressed-tensors' sparse-bitmask in safetensors,
beside packed weights of fewer bits."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.checkpoints.bitmask import compress, compressed_bytes
from sparseinfer.checkpoints.checkpoint import CONFIG, WEIGHTS, open_checkpoint
from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.integers import SUFFIXES, integers_of
from sparseinfer.checkpoints.layout import LAYOUT, Layout, dump_layout
from sparseinfer.checkpoints.model_state import ModelState, state_of
from sparseinfer.checkpoints.narrow import beside, narrow_layers, narrower_than, of_quantizer
from sparseinfer.checkpoints.nesting import wrapper_prefix
from sparseinfer.checkpoints.packed import plain_name
from sparseinfer.checkpoints.plain import Plain, make_plain
from sparseinfer.checkpoints.tied import with_tied
from sparseinfer.checkpoints.write import write_safetensors
from sparseinfer.convert.pretrained import METHOD, WEIGHTS_FILE, keep_pretrained
from sparseinfer.convert.replace import replace
from sparseinfer.files import staged, staged_folder
from sparseinfer.formats.handles import Handle, peek

__all__ = ["Saved", "load_sparse", "load_sparse_into", "save_sparse"]

BITMASK_FORMAT = "sparse-bitmask"
KEYS_SINCE = "0.9.0"
"""The first version of compressed-tensors with the keys that are written."""

_PICKLES = {".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle"}


@dataclass
class Saved:
    """What was written where: bytes of all tensors as they were and are, and which shrank."""

    path: Path
    dense_bytes: int = 0
    stored_bytes: int = 0
    compressed: list[str] = field(default_factory=list)


def save_sparse(
    model: nn.Module | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    exact_layout: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Saved:
    """Save a pruned model or state_dict in compressed-tensors' sparse-bitmask, in safetensors.

    A path that ends in `.safetensors` becomes a file, any other a folder with `model.safetensors`
    and `config.json`. Weights of two or more dimensions with enough zeros are compressed; all else
    is stored as it is. Masks and sparseinfer's packed weights (see `convert_to_sparse`) are
    accepted. Layers with int8 weights, and those with bfloat16 ones in a model of another type, are
    stored as they are packed, with the scales of their inputs, int8 ones by their integers and a
    bit a weight where that is less: `load_sparse_into` gives the same layers back. Of a state_dict,
    which does not tell the model's type, those of bfloat16 stay so that round their inputs too.
    Tied tensors are stored once. The file appears whole or not at all.

    The folder of a transformers model has its own config with a quantization_config, and is read by
    `from_pretrained` where sparseinfer is imported; elsewhere that finds no weights and raises, for
    they are in `model.sparseinfer.safetensors`.

    compressed-tensors knows two-dimensional tensors called `<module>.weight`. Convolution weights
    are stored as `[M, K]` and RNN weights under their own names, with shape and name in the
    metadata for `load_sparse`; `exact_layout` leaves these dense, and int8 and bfloat16 weights
    float32, so that compressed-tensors restores every tensor as it was, and keeps to its name and
    config for a transformers model too (compressed-tensors has read sparse-bitmask up to its
    version 0.12).

    Args:
        model: a module, or the state_dict of one.
        path: a file or a folder.
        exact_layout: compress only what compressed-tensors restores under its name and shape.
        config: content of `config.json` for a state_dict.

    Raises:
        CheckpointError: the path asks for a pickle, the folder holds other weights, or there is no
            tensor to save.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> layer = nn.Linear(64, 64)
        >>> _ = layer.weight.data.mul_(torch.rand(64, 64) > 0.9)
        >>> saved = save_sparse(layer, tempfile.mkdtemp())
        >>> torch.equal(load_sparse(saved.path)["weight"], layer.weight)
        True
    """
    path = Path(path)
    if path.suffix in _PICKLES:
        raise CheckpointError(
            f"{path}: expected a name in .safetensors, or of a folder, got {path.suffix}; "
            f"try {path.with_suffix('.safetensors').name}"
        )
    given = _state_of(model, not exact_layout)
    plain = make_plain(given.tensors, keep=_keep(model, exact_layout))
    state = plain.tensors
    as_file = path.suffix == ".safetensors"
    full = {} if as_file else _config_of(model, config)
    of_transformers = "model_type" in full and not exact_layout
    tensors, aliases = _untied(state)
    if of_transformers:
        _write_twice_what_transformers_does_not_tie(model, state, tensors, aliases)
    saved = Saved(path)
    stored: dict[str, Tensor] = {}
    layout = Layout(aliases=aliases, packed=given.rows)
    weight_of = {part: name for name, row in given.rows.items() for part in row.parts}
    packed: dict[str, None] = {}
    zeros = elements = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if name in plain.kept:
            facts = peek(tensor).info
            # transformers reads what its own models hold.
            integers = None if of_transformers else integers_of(tensor)
            own = {name: tensor}
            if integers is not None:
                own = {f"{name}{end}": p for end, p in zip(SUFFIXES, integers[0], strict=True)}
                layout.integers[name] = integers[1]
            stored.update(own)
            saved.stored_bytes += sum(part.numel() * part.element_size() for part in own.values())
            saved.dense_bytes += math.prod(facts["shape"]) * torch.float32.itemsize
            packed[weight_of.get(name, plain_name(name))] = None
            elements += math.prod(facts["shape"])
            zeros += math.prod(facts["shape"]) - facts["nnz"]
            continue
        saved.dense_bytes += size
        parts, exact = _compressed(name, tensor, tensors, stored)
        readable = name.endswith(".weight") if of_transformers else exact or not exact_layout
        if parts is None or not readable:
            stored[name] = tensor
            saved.stored_bytes += size
            continue
        prefix = name.removesuffix(".weight")
        stored.update({f"{prefix}.{part}": value for part, value in parts.items()})
        if not exact:
            layout.tensors[prefix] = name, tuple(tensor.shape)
        saved.compressed.append(name)
        saved.stored_bytes += sum(part.numel() * part.element_size() for part in parts.values())
        elements += tensor.numel()
        zeros += tensor.numel() - parts["compressed"].numel()
    saved.compressed += packed
    metadata = {"format": "pt", LAYOUT: dump_layout(layout)}
    if as_file:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged([path]) as (unfinished,):
            write_safetensors(stored, unfinished, metadata)
        return saved
    weights = WEIGHTS_FILE if of_transformers else WEIGHTS
    reader: dict[str, Any] = {"quant_method": "compressed-tensors", "version": KEYS_SINCE}
    if of_transformers or plain.kept:
        reader = {"quant_method": METHOD, "weights": weights}
    if of_transformers and plain.kept:
        reader.update(of_quantizer(stored, [name for name in stored if name in plain.kept]))
    full["quantization_config"] = {
        **reader,
        "sparsity_config": {
            "format": BITMASK_FORMAT,
            "global_sparsity": zeros / max(1, elements),
            "sparsity_structure": "unstructured",
            "targets": [name.rpartition(".")[0] for name in saved.compressed if name not in packed],
            "ignore": [],
        },
    }
    if path.is_dir():
        _refuse_other_weights(path, weights)
    whole: Any = nullcontext(path) if path.exists() else staged_folder(path)
    with whole as folder, staged([folder / CONFIG, folder / weights]) as (of_config, of_weights):
        of_config.write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")
        write_safetensors(stored, of_weights, metadata)
    return saved


def load_sparse(path: str | os.PathLike[str], key: str | None = None) -> dict[str, Tensor]:
    """Read the state_dict of a checkpoint, every weight dense and under its plain name.

    Read are what `save_sparse` writes, compressed-tensors' sparse-bitmask and sparse-24-bitmask
    (keys of before and since version 0.9), masks and plain weights, in a file by safetensors or
    torch.save, or a folder with shards. Prefixes of DataParallel and torch.compile are taken off.
    Everything read is validated; no pickle runs code. Packed weights are unpacked: int8 ones are
    the float32 values that they stand for, without the scales of their inputs, which
    `load_sparse_into` keeps. `key` names the state_dict in nested ones.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or its parts do not fit together.
    """
    return _load(path, key).tensors


def _load(
    path: str | os.PathLike[str],
    key: str | None,
    keep: Callable[[str, Handle], bool] = lambda name, handle: False,
) -> Plain:
    """The state_dict without prefixes, what of it stays packed, and the masks applied to it."""
    checkpoint = open_checkpoint(path, key)
    prefix = wrapper_prefix(checkpoint.tensors)
    plain = checkpoint.make_plain(keep=lambda name, handle: keep(name.removeprefix(prefix), handle))
    for text in plain.notes:
        warnings.warn(text, stacklevel=3)
    tensors = checkpoint.tensors
    prefix = wrapper_prefix(tensors)
    return Plain(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items()},
        kept={n.removeprefix(prefix): own.removeprefix(prefix) for n, own in plain.kept.items()},
        masks={name.removeprefix(prefix): mask for name, mask in plain.masks.items()},
    )


def load_sparse_into(
    model: nn.Module, path: str | os.PathLike[str], key: str | None = None
) -> nn.Module:
    """Load a checkpoint that `load_sparse` reads into a dense model, which is returned.

    `convert_to_sparse` makes it fast afterwards. Layers whose weights the file has packed with
    fewer bits than the model (see `save_sparse`) become the sparse layers that were saved, in the
    model itself; where that is one layer, another object is returned. A tensor that the checkpoint
    lacks may be one that the model ties to another. A model on the meta device takes over the
    tensors that were read.

    Raises:
        CheckpointError: as `load_sparse`; or names or shapes are not those of the model.

    Example:
        >>> import tempfile
        >>> saved = save_sparse(nn.Linear(4, 4), tempfile.mkdtemp())
        >>> load_sparse_into(nn.Linear(4, 4), saved.path)
        Linear(in_features=4, out_features=4, bias=True)
    """
    own = model.state_dict()
    found = _load(path, key, narrower_than(own))
    state = found.tensors
    # A model of the tool that saved the file holds its masks.
    state.update({name: mask for name, mask in found.masks.items() if name in own})
    try:
        layers, placed = narrow_layers(model, state, found.kept)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    placed |= found.kept.keys() & own.keys()
    # What a packed layer checks itself as it is loaded.
    taken = placed.union(*map(beside, placed))
    for name, tensor in state.items():
        if name in own and name not in taken and own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name}: expected the shape {list(own[name].shape)} of the model, got "
                f"{list(tensor.shape)}; try the model that was saved"
            )
    state = with_tied(model, state)
    there = state.keys() | taken | {found.kept[name] for name in placed}
    missing = [name for name in own if name not in there]
    unexpected = [name for name in state if name not in own and name not in taken]
    if missing or unexpected:
        what, names = ("a tensor", missing) if missing else ("no tensor", unexpected)
        raise CheckpointError(
            f"{path}: expected {what} {names[0]}, as the model has it, got "
            f"{len(missing)} missing and {len(unexpected)} unexpected; "
            "try the dense model that was saved"
        )
    on_meta = any(value.is_meta for value in own.values())
    result = replace(model, layers, inplace=True)
    keep_pretrained(result)
    try:
        result.load_state_dict(state, strict=False, assign=on_meta)
    # A packed weight that a sparse layer of the model does not take.
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(f"{path}: {lines[-1]}") from error
    return result


def _state_of(model: nn.Module | Mapping[str, Any], narrow: bool) -> ModelState:
    if isinstance(model, nn.Module):
        return state_of(model, narrow)
    if not any(isinstance(value, Tensor) for value in model.values()):
        raise CheckpointError(
            "expected a model or a state_dict, got no tensor; try save_sparse(model, path)"
        )
    return ModelState(dict(model))


def _keep(
    model: nn.Module | Mapping[str, Any], exact_layout: bool
) -> Callable[[str, Handle], bool]:
    """Which packed weights stay packed: of a model those that are left, see `state_of`."""
    if isinstance(model, nn.Module):
        return lambda name, handle: True
    return lambda name, handle: not exact_layout and handle.activations != "float32"


def _untied(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and under which name the others find it."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            warnings.warn(
                f"{name}: left out, for safetensors holds tensors only, got {type(value).__name__}",
                stacklevel=3,
            )
            continue
        tensor = value.detach()
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            raise CheckpointError(
                f"{name}: expected a dense tensor with values, got {tensor.layout} on "
                f"{tensor.device}; try tensor.to_dense()"
            )
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and identity in first:
            aliases[name] = first[identity]
            continue
        first[identity] = name
        tensors[name] = tensor
    return tensors, aliases


def _compressed(
    name: str, tensor: Tensor, tensors: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor] | None, bool]:
    """The parts of a weight that shrinks so, and whether they alone tell its name and shape."""
    prefix = name.removesuffix(".weight")
    exact = prefix != name and tensor.dim() == 2
    if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.numel() == 0:
        return None, exact
    matrix = tensor.reshape(tensor.shape[0], -1)
    values = matrix.float() if matrix.dtype.itemsize == 1 else matrix
    nnz = int(torch.count_nonzero(values))
    size = compressed_bytes(tuple(matrix.shape), nnz, matrix.element_size())
    if size >= tensor.numel() * tensor.element_size():
        return None, exact
    # Keys that would hide others, or be taken for those of before version 0.9, are not written.
    clash = any(
        f"{prefix}.{part}" in tensors or f"{prefix}.{part}" in stored
        for part in ("compressed", "bitmask", "shape", "row_offsets")
    )
    if clash or prefix.endswith(".weight"):
        return None, exact
    return compress(matrix), exact


def _config_of(model: Any, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is not None:
        return dict(given)
    to_json = getattr(getattr(model, "config", None), "to_json_string", None)
    if to_json is None:
        return {}
    config = json.loads(to_json())
    config["architectures"] = [type(model).__name__]
    return config


def _write_twice_what_transformers_does_not_tie(
    model: Any, state: Mapping[str, Any], tensors: dict[str, Tensor], aliases: dict[str, str]
) -> None:
    """`from_pretrained` ties what the model's class says, and would start the rest at random."""
    if not isinstance(model, nn.Module):
        return
    told: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    for alias in [alias for alias in aliases if alias not in {*told, *told.values()}]:
        tensors[alias] = state[alias].detach().clone()
        del aliases[alias]


def _refuse_other_weights(folder: Path, own: str) -> None:
    for entry in sorted(folder.iterdir()):
        if entry.name != own and (
            entry.name.endswith(".index.json") or entry.suffix in (*_PICKLES, ".safetensors")
        ):
            raise CheckpointError(
                f"{folder}: expected no weights beside {own}, got {entry.name}; try another folder"
            )
