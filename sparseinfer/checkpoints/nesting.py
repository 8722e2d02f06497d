"""Where the state_dict lies in what a checkpoint holds, and the prefixes that wrappers add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.masks import refuse_masks_alone

__all__ = ["find_state_dict", "wrapper_prefix"]

PREFERRED = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights",
    "params",
)  # fmt: skip
"""Keys under which training scripts keep the state_dict, the most telling first."""

NOT_THE_MODEL = ("optim", "sched", "scaler", "ema", "amp", "loss", "mask")
"""Beginnings of keys whose tensors belong to training."""

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""Prefixes of DataParallel and DistributedDataParallel, torch.compile, and FSDP."""

MAX_DEPTH = 4


def find_state_dict(root: Any, key: str | None = None) -> tuple[str, dict[str, Any]]:
    """Find the dict of tensors in a loaded checkpoint: its path of keys, and the dict itself.

    The path is empty where `root` is the state_dict. `key` (dots between levels) names it where
    the choice is not plain.

    Raises:
        CheckpointError: there is no dict of tensors, or there are several and no key tells which.

    Example:
        >>> import torch
        >>> find_state_dict({"epoch": 3, "model": {"weight": torch.zeros(2, 2)}})[0]
        'model'
    """
    if key is not None:
        return key, _at(root, key)
    if not isinstance(root, dict):
        raise CheckpointError(
            f"expected a state_dict, or a dict that holds one, got {type(root).__name__}; "
            "try torch.save(model.state_dict(), path)"
        )
    refuse_masks_alone(root)
    found = dict(_candidates(root, "", 0, {}))
    if "" in found and not any(_last(path) in PREFERRED for path in found):
        return "", found[""]
    found.pop("", None)
    for name in PREFERRED:
        named = [path for path in found if _last(path) == name]
        if len(named) == 1:
            return named[0], found[named[0]]
        if named:
            break
    if len(found) == 1:
        return next(iter(found.items()))
    if not found:
        keys = ", ".join(map(repr, list(root)[:5])) or "no key"
        raise CheckpointError(
            f"expected a dict of tensors, got one with {keys} and no tensor to prune; "
            "try torch.save(model.state_dict(), path)"
        )
    raise CheckpointError(
        f"expected one state_dict, got several: {', '.join(found)}; try --key {next(iter(found))}"
    )


def wrapper_prefix(names: Iterable[str]) -> str:
    """The prefix that wrappers have put before every one of `names`; empty where there is none.

    Example:
        >>> wrapper_prefix(["module.fc.weight", "module.fc.bias"])
        'module.'
    """
    rest, prefix = list(names), ""
    while rest:
        wrapper = next((w for w in WRAPPERS if all(name.startswith(w) for name in rest)), None)
        if wrapper is None:
            break
        prefix += wrapper
        rest = [name.removeprefix(wrapper) for name in rest]
    return prefix


def _candidates(
    value: dict[Any, Any], path: str, depth: int, seen: dict[int, bool]
) -> Iterator[tuple[str, Any]]:
    # A dict that is there under many names, or within itself, is gone through once.
    again = id(value) in seen
    if not again:
        rows = (isinstance(key, str) and _has_rows(item) for key, item in value.items())
        seen[id(value)] = any(rows)
    if seen[id(value)]:
        yield path, value
    if again or depth == MAX_DEPTH:
        return
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, dict):
            continue
        if not key.lower().startswith(NOT_THE_MODEL):
            yield from _candidates(item, f"{path}.{key}" if path else key, depth + 1, seen)


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.dim() > 1 or value.numel() > 1)


def _at(root: Any, key: str) -> dict[str, Any]:
    value = root
    for step in key.split("."):
        if not isinstance(value, dict) or step not in value:
            keys = ", ".join(map(str, list(value)[:8])) if isinstance(value, dict) else "no keys"
            raise CheckpointError(f"expected --key to name a dict, got {key!r}; try one of {keys}")
        value = value[step]
    if not isinstance(value, dict) or not any(isinstance(item, Tensor) for item in value.values()):
        raise CheckpointError(
            f"expected a dict of tensors at {key!r}, got {type(value).__name__}; try another --key"
        )
    return value


def _last(path: str) -> str:
    return path.rpartition(".")[2]
