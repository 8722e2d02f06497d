"""Prunes, converts, compares and times one model at one sparsity and thread count."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.models.compare import compare
from benchmarks.models.pruning import prunable, prune
from benchmarks.models.rows import ModelRow
from benchmarks.models.workload import Workload, channels_last
from sparseinfer import LayerReport, convert_to_sparse, report
from sparseinfer.demo.sizes import bytes_in_memory
from sparseinfer.timing.rounds import Plan, interleave


def pruned(workload: Workload, sparsity: float) -> tuple[Workload, float]:
    """Return the workload with a pruned copy of its model, and the share of zeros reached."""
    model = copy.deepcopy(workload.model)
    zeros = prune(model, sparsity, workload.kept)
    return dataclasses.replace(workload, model=model), zeros


def left_dense(workload: Workload, layers: Sequence[LayerReport]) -> dict[str, str]:
    """Return the layers that stayed dense, each with its reason.

    A layer that was pruned and that the report does not know is among them.
    """
    left = {layer.name: layer.reason for layer in layers if not layer.is_sparse}
    known = {name for layer in layers for name in (layer.name, *layer.aliases)}
    for parameter in prunable(workload.model, workload.kept):
        name = parameter.rpartition(".")[0]
        if name not in known:
            kind = type(workload.model.get_submodule(name)).__name__
            left[name] = f"the report does not know it: {kind}"
    return left


def measure(
    name: str, workload: Workload, sparsity: float, zeros: float, threads: int, plan: Plan
) -> ModelRow:
    """Convert the workload's pruned model, compare its outputs, then time it against dense.

    Raises:
        WrongResultError: the converted model's outputs are wrong; nothing was timed.
    """
    torch.set_num_threads(threads)
    examples = workload.inputs if workload.examples is None else workload.examples
    start = time.perf_counter()
    converted = convert_to_sparse(workload.model, example_inputs=examples, progress=False)
    seconds = time.perf_counter() - start
    layers = report(converted).layers
    difference = compare(workload, converted)
    calls = {
        "dense": partial(workload.run, workload.model, workload.inputs),
        "converted": partial(workload.run, converted, workload.inputs),
    }
    if workload.images:
        calls["channels_last"] = partial(workload.run, *channels_last(workload))
    with torch.inference_mode():
        seen = interleave(calls, plan, collect=False)
    return ModelRow(
        model=name,
        does=workload.does,
        trained=workload.trained,
        sparsity=sparsity,
        zeros=zeros,
        threads=threads,
        converted_layers=sum(layer.is_sparse for layer in layers),
        left_layers=left_dense(workload, layers),
        conversion_seconds=seconds,
        dense_bytes=bytes_in_memory(workload.model),
        converted_bytes=bytes_in_memory(converted),
        difference=difference,
        rounds=seen.rounds,
        dense=seen.timing("dense"),
        converted=seen.timing("converted"),
        speedup=seen.speedup("converted", over="dense"),
        channels_last=seen.timing("channels_last") if workload.images else None,
        speedup_over_channels_last=(
            seen.speedup("converted", over="channels_last") if workload.images else None
        ),
    )
