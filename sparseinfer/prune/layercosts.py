"""What each layer costs at each sparsity: non-zeros, multiply-adds, milliseconds here."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from sparseinfer.convert.conversion import convert_to_sparse
from sparseinfer.convert.model_report import report
from sparseinfer.convert.observe import observe
from sparseinfer.layers.kinds import kind_of
from sparseinfer.prune.pruner import Pruner
from sparseinfer.prune.targets import find_targets
from sparseinfer.switches import switching

__all__ = ["layer_costs"]

Costs = dict[str, list[float]]


def layer_costs(
    model: nn.Module,
    names: Sequence[str],
    sparsities: Sequence[float],
    example_inputs: Any,
    latency: bool,
    options: dict[str, Any],
) -> dict[str, Costs]:
    """Return costs by kind ("size", "flops", "latency") and weight, at 0 and each sparsity.

    "flops" counts the multiply-adds of non-zeros over one pass of `example_inputs`; "latency" is
    the faster of a layer's dense and sparse time as `convert_to_sparse` measures them, with all of
    `names` pruned to that sparsity. A layer that is not converted costs the same at any sparsity,
    one that is not called by itself (an attention's output projection) nothing.

    Example:
        >>> layer_costs(nn.Linear(4, 2), ["weight"], [0.5], None, False, {})
        {'size': {'weight': [8.0, 4.0]}}
    """
    targets = {target.name: target for target in find_targets(model, list(names))[0]}
    kept = [1.0, *(1.0 - sparsity for sparsity in sparsities)]
    sizes = {name: float(targets[name].weight.numel()) for name in names}
    costs = {"size": {name: [sizes[name] * share for share in kept] for name in names}}
    if example_inputs is None:
        return costs
    outputs = _outputs(model, {name: targets[name].module for name in names}, example_inputs)
    costs["flops"] = {
        name: [sizes[name] * outputs[name] * share for share in kept] for name in names
    }
    if latency:
        costs["latency"] = _latencies(model, names, sparsities, example_inputs, options)
    return costs


def _outputs(
    model: nn.Module, modules: dict[str, nn.Module], example_inputs: Any
) -> dict[str, float]:
    """How often each weight of a layer is used in one pass: tokens, or a convolution's pixels."""
    uses = dict.fromkeys(modules, 0.0)
    handles = []
    for name, module in modules.items():

        def note(layer: Any, args: Any, output: Any, name: str = name) -> None:
            kind = kind_of(layer)
            if kind is not None and kind.op == "conv" and kind.output_dim == 0:
                uses[name] += output.numel() / layer.out_channels
            else:
                uses[name] += args[0].numel() / _inputs(layer)

        handles.append(module.register_forward_hook(note))
    try:
        passes = observe(model, [], example_inputs).passes
    finally:
        for handle in handles:
            handle.remove()
    return {name: count / passes for name, count in uses.items()}


def _inputs(layer: Any) -> int:
    names = ("in_features", "in_channels", "input_size", "embed_dim", "nx")
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def _latencies(
    model: nn.Module,
    names: Sequence[str],
    sparsities: Sequence[float],
    example_inputs: Any,
    options: dict[str, Any],
) -> Costs:
    dense_ms: dict[str, float] = {}
    found: Costs = {name: [] for name in names}
    for sparsity in sparsities:
        pruned = copy.deepcopy(model)
        with switching(), warnings.catch_warnings():
            # Nobody keeps these models: only their layers' times are of interest.
            warnings.filterwarnings("ignore", "pruning emptied")
            pruner = Pruner(pruned, schedule=sparsity, targets=list(names), **options)
            pruner.scope = "layer"
            pruner.step()
        converted = convert_to_sparse(pruned, example_inputs=example_inputs, progress=False)
        measured = {layer.name: layer for layer in report(converted).layers}
        for name in names:
            layer = measured.get(name.rpartition(".")[0])
            if layer is None or layer.dense_ms is None or layer.sparse_ms is None:
                found[name].append(dense_ms.setdefault(name, 0.0))
                continue
            dense_ms.setdefault(name, layer.dense_ms)
            ratio = min(1.0, layer.sparse_ms / layer.dense_ms)
            found[name].append(dense_ms[name] * ratio)
    return {name: [dense_ms[name], *values] for name, values in found.items()}
