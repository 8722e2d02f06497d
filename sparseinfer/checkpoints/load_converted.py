"""Loads the state_dict of a converted model into a fresh dense one."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparseinfer.checkpoints.layout import LAYOUT
from sparseinfer.checkpoints.tied import with_tied
from sparseinfer.convert.pretrained import keep_pretrained
from sparseinfer.convert.replace import Replacement, replace
from sparseinfer.layers.kinds import Kind, kind_of

__all__ = ["empty_layers", "load_converted"]

_log = logging.getLogger(__name__)


def load_converted(
    model: nn.Module,
    state: Mapping[str, Any] | str | os.PathLike[str],
    *,
    strict: bool = True,
    assign: bool = False,
) -> nn.Module:
    """Load the weights of a converted model: the layers that they have packed become sparse.

    Args:
        model: the architecture, dense, masked or converted; it stays as it is. Built on the meta
            device and loaded with `assign=True`, it takes no memory of its own.
        state: the `state_dict()` of a converted model, or the file it was saved in: by `torch.save`
            (read with `weights_only=True`), by safetensors, or by `save_sparse`; or a folder as the
            last or `save_pretrained` writes it. Tensors that the model ties may stand in it once.
        strict: raise where keys are missing or unexpected; otherwise they are logged as warnings.
        assign: keep the tensors of `state` instead of copying them, as `nn.Module.load_state_dict`.

    Returns:
        A copy of `model` with the weights loaded.

    Raises:
        TypeError: `model` is not an nn.Module, or `state` holds no state_dict.
        RuntimeError: keys are missing or unexpected, a tensor has another shape, or a packed weight
            is not valid; everything wrong is listed, as `nn.Module.load_state_dict` does.
        OSError: there is no such file, or it may not be read.
        CheckpointError: it is damaged, would run code, or declares more than it holds.

    Example:
        >>> from sparseinfer import convert_to_sparse
        >>> sparse = convert_to_sparse(nn.Sequential(nn.Linear(8, 4)), min_speedup=0)
        >>> load_converted(nn.Sequential(nn.Linear(8, 4)), sparse.state_dict())[0].format
        'panel'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"expected an nn.Module, got {type(model).__name__}; try the model that was converted, "
            "built anew"
        )
    entries = _read(Path(state)) if isinstance(state, (str, os.PathLike)) else state
    if not isinstance(entries, Mapping):
        raise TypeError(
            f"expected a state_dict, got {type(entries).__name__}; try model.state_dict()"
        )
    entries = with_tied(model, entries)
    result = replace(model, empty_layers(model, entries))
    keep_pretrained(result)
    found = result.load_state_dict(entries, strict=strict, assign=assign)
    for kind, keys in found._asdict().items():
        if keys:
            _log.warning("%s: %s", kind.replace("_", " "), ", ".join(keys))
    return result


def empty_layers(model: nn.Module, names: Container[str]) -> dict[nn.Module, Replacement]:
    """Sparse layers of all zeros for those layers of `model` whose weights are packed in a
    state_dict with these `names`.

    Example:
        >>> len(empty_layers(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {"1.packed"}))
        1
    """
    swaps: dict[nn.Module, Replacement] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind, prefix = kind_of(module), f"{name}." if name else ""
        if kind is None or kind.sparse is None or module in swaps:
            continue
        if kind.parts is not None:
            swaps.update(_empty_parts(prefix, module, kind, names))
        elif kind.packed_in(module, prefix, names):
            swaps[module] = _empty(module, kind)
    return swaps


def _empty(module: nn.Module, kind: Kind) -> Replacement:
    """A sparse layer of all zeros in the place of a dense one."""
    weight = kind.matrix(module)
    assert weight is not None
    zeros = torch.zeros(weight.shape, dtype=torch.float32, device="cpu")
    biases = {
        name: zeros.new_zeros(bias.shape, dtype=bias.dtype)
        for name, bias in kind.effective_biases(module).items()
    }
    # csr stores any shape; what is loaded brings its own format.
    layer: Replacement = kind.sparse.from_dense(kind.rebuild(module, zeros, biases), "csr")
    return layer.to(weight.device, weight.dtype).train(module.training)


def _empty_parts(
    prefix: str, module: nn.Module, kind: Kind, entries: Container[str]
) -> dict[nn.Module, Replacement]:
    """Sparse layers of all zeros for those projections of an attention that `entries` has packed.

    The projections of query, key and value are apart where they were when it was saved.
    """
    assert kind.parts is not None
    separate = any(
        f"{prefix}{role}_proj.{stored}" in entries
        for role in "qkv"
        for stored in ("packed", "weight")
    )
    found: dict[nn.Module, Replacement] = {}
    for layer in kind.parts(module, separate):
        own = kind_of(layer)
        assert own is not None
        if own.packed_in(layer, f"{prefix}{layer.role}.", entries):
            found[layer] = _empty(layer, own)
    return found


def _read(path: Path) -> Any:
    """The state_dict in a file, as copies: the file may change."""
    from sparseinfer.checkpoints import open_checkpoint
    from sparseinfer.checkpoints.files import read_entries

    path.stat()  # a missing file is the system's error
    shards = path.is_dir() or path.name.endswith(".index.json")
    if not shards and path.suffix != ".safetensors":
        return read_entries(path)
    checkpoint = open_checkpoint(path)
    if any(LAYOUT in shard.metadata for shard in checkpoint.shards):  # by save_sparse
        checkpoint.make_plain(keep=lambda name, handle: True)
    return {name: value for name, value, _ in checkpoint.items()}
