"""convert_to_sparse: a pruned model in, the same model out, sparse where that is faster."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sparseinfer.decide import Decider
from sparseinfer.formats import check_format
from sparseinfer.measure import torch_threads
from sparseinfer.modules import SparseLayer
from sparseinfer.observe import observe, separate_attentions
from sparseinfer.progress import track
from sparseinfer.replace import replace
from sparseinfer.report import Report, describe_sparse, store
from sparseinfer.scan import scan

__all__ = ["convert_to_sparse"]

_log = logging.getLogger(__name__)


def convert_to_sparse(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    min_speedup: float = 1.05,
    formats: str | Sequence[str] | None = None,
    inplace: bool = False,
    threads: int | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Replace the pruned linear and convolution layers of a model where sparse ones are faster.

    They are `nn.Linear`, `nn.Conv1d`, `nn.Conv2d` and transformers' `Conv1D`, wherever nested, and
    the projections of `nn.MultiheadAttention`. With `example_inputs` (a tensor, a tuple of
    positional arguments, a dict of keyword arguments, or a list of those) each layer is measured
    against its own dense forward at the input shapes it really meets; without, the cost model of
    `sparseinfer.cost` decides. Masks and parametrizations are read as they take effect. Everything
    else, and every layer that would not get faster, is left alone; `sparseinfer.report` tells why.

    Args:
        model: the model; layers that are sparse already stay as they are.
        example_inputs: what the model is called with; used in evaluation mode without gradients.
        min_speedup: dense time over sparse time that a layer has to reach; 0 converts all that can
            be.
        formats: names of the packed formats to try, of `sparseinfer.formats.FORMATS`; None: panel
            on the CPU (csr for what it cannot store), nm on CUDA.
        inplace: change `model` itself. Use the returned model: where `model` is itself a layer, it
            is another object.
        threads: threads to measure with; None: `torch.get_num_threads()`. The converted model
            follows `torch.set_num_threads` at every call.
        progress: show a bar; None: on a terminal, if it takes over two seconds.

    Returns:
        The converted model: a copy, unless `inplace`.

    Raises:
        TypeError: `model` is not an nn.Module, is compiled or scripted, or an example input is none
            of the above.
        ValueError: a format is unknown, min_speedup is negative or NaN, threads is less than 1, or
            the list of examples is empty.

    Source: speed-up is decided by measurement, as in libxsmm's and ATLAS's empirical search
    (Whaley, Petitet and Dongarra, "Automated empirical optimizations of software and the ATLAS
    project", 2001).

    Example:
        >>> from torch.nn.utils import prune
        >>> model = nn.Sequential(nn.Linear(256, 256), nn.ReLU())
        >>> _ = prune.l1_unstructured(model[0], "weight", amount=0.9)
        >>> sparse = convert_to_sparse(model, example_inputs=torch.zeros(64, 256), min_speedup=0)
        >>> type(sparse[0]).__name__
        'SparseLinear'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"expected an nn.Module, got {type(model).__name__}; try the model that "
            "the state_dict belongs to"
        )
    _check_eager(model)
    if not min_speedup >= 0:
        raise ValueError(f"expected min_speedup >= 0, got {min_speedup}; try min_speedup=1.05")
    names = (formats,) if isinstance(formats, str) else formats
    for name in names or ():
        check_format(name)

    with torch_threads(threads) as used, torch.no_grad():
        layers = scan(
            model, None if example_inputs is None else separate_attentions(model, example_inputs)
        )
        modules = [layer.module for layer in layers if not layer.blocked]
        seen = None if example_inputs is None else observe(model, modules, example_inputs)
        decider = Decider(min_speedup, used, names, seen)
        swaps: dict[nn.Module, SparseLayer] = {}
        reports = []
        for layer in track(layers, len(layers), "converting", progress):
            sparse, decision = decider.decide(layer)
            _log.debug("%s: %s (%s)", decision.name, decision.format, decision.reason)
            reports.append(decision)
            if sparse is not None:
                swaps[layer.module] = sparse.train(layer.module.training)
        already = describe_sparse(model)
        result = replace(model, swaps, inplace)
    device = str(layers[0].device) if layers else "cpu"
    summary = Report(reports + already, True, used, device, min_speedup)
    store(result, summary)
    _log.info(summary.sentence)
    return result


def _check_eager(model: nn.Module) -> None:
    """Refuse what holds compiled code of the dense layers: a copy would go on running it."""
    # Recognised by name: to import torch's compiler takes seconds.
    if type(model).__name__ == "OptimizedModule" and isinstance(
        getattr(model, "_orig_mod", None), nn.Module
    ):
        raise TypeError(
            "expected an nn.Module as it was written, got one compiled by torch.compile; try "
            "torch.compile(convert_to_sparse(model._orig_mod))"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"expected an nn.Module as it was written, got a TorchScript {type(model).__name__}; "
            "try convert_to_sparse before torch.jit"
        )
