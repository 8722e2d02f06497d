"""convert_to_sparse: a pruned model in, the same model out, sparse where that is faster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparseinfer.convert.closes_over import held_layers
from sparseinfer.convert.decide import Decider
from sparseinfer.convert.guarantee import Guarantee
from sparseinfer.convert.layer_report import DENSE, LayerReport, describe_sparse
from sparseinfer.convert.model_report import Report, store
from sparseinfer.convert.narrow import MIN_SQNR_DB, narrow_for
from sparseinfer.convert.observe import Example, list_examples, observe, separate_attentions
from sparseinfer.convert.options import Options
from sparseinfer.convert.platform import Platform
from sparseinfer.convert.pretrained import keep_pretrained
from sparseinfer.convert.proof import check_copy, unproven
from sparseinfer.convert.reads import weight_reads
from sparseinfer.convert.replace import Replacement, replace
from sparseinfer.convert.review import review
from sparseinfer.convert.scan import Layer, brief, scan
from sparseinfer.convert.state import random_state_kept
from sparseinfer.layers.projections import called
from sparseinfer.ops.memory import require_model_memory
from sparseinfer.progress import Bar
from sparseinfer.quantize.fake import has_fake_quant
from sparseinfer.quantize.scheme import renamed_value_type
from sparseinfer.timing.machine import HOST, target_facts
from sparseinfer.timing.measure import torch_threads
from sparseinfer.timing.tuning import Cache, Tuner, cache_folder

__all__ = ["Options", "convert", "convert_to_sparse"]

_log = logging.getLogger("sparseinfer.convert")

LAYERS_SHARE = 0.6
"""Of the time to measure; the rest is for the whole model."""


def convert_to_sparse(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    min_speedup: float = 1.05,
    formats: str | Sequence[str] | None = None,
    inplace: bool = False,
    threads: int | None = None,
    progress: bool | None = None,
    baseline: str = "eager",
    verify: bool = True,
    budget_s: float = 60.0,
    cache: bool | str | os.PathLike[str] = True,
    weights: str = "float32",
    activations: str | None = None,
    calibration: Any = None,
    min_sqnr: float = MIN_SQNR_DB,
    evaluate: Callable[[nn.Module], float] | None = None,
    value_type: str | None = None,
    target: str = HOST,
) -> nn.Module:
    """Replace the pruned linear and convolution layers of a model where sparse ones are faster.

    They are `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.ConvTranspose1d`, `nn.ConvTranspose2d`,
    `nn.LSTM`, `nn.GRU`, `nn.RNN`, their cells and transformers' `Conv1D`, wherever nested, and the
    projections of `nn.MultiheadAttention`. With `example_inputs` (a tensor, a tuple of positional
    arguments, a dict of keyword arguments, or a list of those) each layer is measured against its
    own dense forward at the input shapes it really meets, and then the whole model against the
    dense one: layers are taken back until it is not slower. Without example inputs nothing is
    timed, and the cost model of `sparseinfer.timing.cost` decides. Masks and parametrizations are
    read as they take effect. Everything else, and every layer that would not get faster, is left
    alone; `sparseinfer.report` tells why.

    Args:
        model: the model; layers that are sparse already stay as they are.
        example_inputs: what the model is called with; used in evaluation mode without gradients.
        min_speedup: dense time over sparse time that a layer has to reach, with 95% confidence; 0
            converts all that can be. Less than 1 lets the whole model be as much slower too.
        formats: names of the packed formats to try, of `sparseinfer.formats.FORMATS`; None: panel
            on the CPU (csr for what it cannot store), on CUDA whichever of nm, bsr and csr suit
            the pattern. Where none gains, a format named here with min_speedup=0 still saves
            memory.
        inplace: change `model` itself. Use the returned model: where `model` is itself a layer, it
            is another object.
        threads: threads to measure with; None: `torch.get_num_threads()`. The converted model
            follows `torch.set_num_threads` at every call.
        progress: show a bar; None: on a terminal, if it takes over two seconds.
        baseline: what the model has to beat: `eager`, itself as it is with the example inputs as
            they are; `channels_last`, itself and its inputs in that memory format; `compile`,
            itself under `torch.compile`, and then the converted one is compiled too (single layers
            are compared uncompiled); `cuda_graph`, both replayed from CUDA graphs, layers and
            whole, so that no launch counts; `auto`, the faster of the first two.
        verify: time the whole model and take layers back; False: measure only layer by layer.
        budget_s: seconds that measuring may take in all; layers whose turn comes later stay dense.
            Compiling is counted; a comparison under way is finished.
        cache: keep comparisons for later conversions: True: in `$SPARSEINFER_CACHE` (`off`:
            nowhere), else `~/.cache/sparseinfer`; a path: in that folder; False: nowhere.
        weights: the type in which the panel format stores them, on the CPU: `float32`;
            `bfloat16`, which rounds each by 2^-9 of it at most and halves the bytes of the values
            (the arithmetic is float32 then; faster where weights come from memory: large layers
            called with few tokens); or `int8`, by a scale an output row, for linear layers and
            convolutions. A layer of narrow types has to beat torch's dense one of that type and the
            sparse float32 one too (`sparseinfer.convert.rivals`).
        activations: the type that they are multiplied in; None: that which suits `weights`
            (`sparseinfer.quantize.SCHEMES` has the combinations). `bfloat16` beside bfloat16
            weights rounds inputs too and sums in float32; without AVX-512 BF16, and in recurrent
            layers, the arithmetic stays float32, and the report says so.
        calibration: for int8 activations: data as `sparseinfer.calibrate` takes it (a DataLoader of
            a few hundred samples), or what that returned. None: each token of a linear layer's
            input is rounded by its own range, and convolutions stay in float32.
        min_sqnr: decibels of signal over error that the output of a layer with rounded activations
            needs, on its inputs in calibration or on the example inputs; layers with less stay in
            the wider type.
        evaluate: called with `model` and with the converted model, gives a figure of each, such as
            its accuracy, for the report.
        value_type: the former name of `weights`.
        target: the machine that will run the model, of `sparseinfer.formats.TARGETS`; `host`: this
            one. For another the weights are packed as that machine packs them, `threads` is its
            own number by default, and what the cost model knows of it decides: nothing of another
            machine can be measured here.

    Returns:
        The converted model: a copy, unless `inplace`.

    Raises:
        TypeError: `model` is not an nn.Module, is compiled or scripted, an example input or the
            calibration is none of the above, or `evaluate` gives no number.
        ValueError: the model has fake quantisation; the calibration data is empty, of another shape
            or not finite; a format, the baseline, a type or the target is unknown, min_speedup is
            negative or NaN, threads is less than 1, budget_s is not positive, the list of examples
            is empty, or there are example inputs, or weights on a GPU, for another target.
        RuntimeError: the memory of a parameter or buffer was released (sharded or offloaded).
        NotImplementedError: these types of weights and activations are not built yet.

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
    stored = renamed_value_type(weights, value_type) or "float32"
    options = Options(
        example_inputs, min_speedup, formats, inplace, threads, progress, baseline, verify,
        budget_s, cache, stored, activations, calibration, min_sqnr, evaluate, target,
    )  # fmt: skip
    return convert(model, options, Platform())


def convert(model: nn.Module, options: Options, platform: Platform) -> nn.Module:
    """Do what `convert_to_sparse` says, on a platform.

    Example:
        >>> convert(nn.Sequential(nn.ReLU()), Options(), Platform())
        Sequential(
          (0): ReLU()
        )
    """
    _check_eager(model)
    require_model_memory(model)
    if has_fake_quant(model):
        raise ValueError(
            "expected a model without fake quantisation, got one with it; try "
            "convert_to_sparse(remove_fake_quant(model), weights='int8', ...)"
        )
    inputs, target = options.example_inputs, options.target
    runs_on = target_facts(target)
    folder = cache_folder(options.cache)
    evaluate = options.evaluate
    figures = [] if evaluate is None else [_figure(evaluate, model)]

    with (
        torch_threads(options.threads) as used,
        torch.inference_mode(False),
        torch.no_grad(),
        random_state_kept(model),
    ):
        if target != HOST and options.threads is None:
            used = runs_on["threads"]
        layers = scan(model, None if inputs is None else separate_attentions(model, inputs))
        held = held_layers(model, options.inplace)
        for layer in layers:
            if layer.module in held and not layer.blocked:
                layer.blocked = (
                    f"{held[layer.module]}, a function on the model, would go on calling it"
                )
        if inputs is None:
            _leave_what_is_read(model, layers)
        modules = [layer.module for layer in layers if not layer.blocked]
        seen = None if inputs is None else observe(model, modules, inputs)
        narrow = narrow_for(
            model, layers, options.scheme, options.calibration, inputs, options.min_sqnr, target
        )
        devices = _devices(model, layers)
        if target != HOST and any(platform.kernels_of(device) == "cuda" for device in devices):
            raise ValueError(
                f"expected a model on the CPU for target={target!r}, got one on CUDA; "
                "try model.cpu()"
            )
        waits = next((device for device in devices if device.type == "cuda"), devices[0])
        clock = platform.clock
        start = clock.wall()
        tuner = Tuner(
            used, waits, options.min_speedup, start + options.budget_s,
            None if folder is None else Cache(folder),
            others={own.device for own in model.parameters()} - {waits}, clock=clock,
        )  # fmt: skip
        if options.baseline == "cuda_graph" and platform.kernels_of(waits) != "cuda":
            raise ValueError(
                f"expected a model on CUDA for baseline='cuda_graph', got one on {waits}; "
                "try model.cuda()"
            )
        guarantee = None
        examples: list[Example] = []
        if inputs is not None:
            examples = list_examples(inputs)
            assert seen is not None
            guarantee = Guarantee(
                model, examples, tuner, options.baseline, options.min_speedup, seen.changes,
                platform,
            )  # fmt: skip
        decider = Decider(
            options.min_speedup,
            tuner,
            options.names,
            seen,
            channels_last=guarantee is not None and guarantee.baseline == "channels_last",
            layers=len(layers),
            until=start + LAYERS_SHARE * options.budget_s,
            generates=_generates(model),
            weights=options.scheme.weights,
            narrow=narrow,
            target=target,
            timers={device: platform.timer(device, options.baseline) for device in devices},
            platform=platform,
        )
        swaps: dict[nn.Module, Replacement] = {}
        decisions: dict[nn.Module, LayerReport] = {}
        whole = None

        def decide(layer: Layer) -> None:
            sparse, decisions[layer.module] = decider.decide(layer)
            swaps.pop(layer.module, None)
            if sparse is not None:
                swaps[layer.module] = sparse
            bar.tick()

        with Bar("converting", len(layers) + 1, options.progress) as bar:
            for layer in layers:
                decide(layer)
                bar.advance()
            # A GPU's layers are timed with their weights in memory, the model as it comes.
            at_hand = platform.kernels_of(waits) == "cpu" and decider.left_s > 0
            if guarantee is not None and tuner.measured and at_hand:
                review(decider, decisions, guarantee.dense_ms(), decide)
            if guarantee is not None and swaps:
                assert seen is not None
                take_back(unproven(model, swaps, seen, examples), swaps, decisions)
            if guarantee is not None and options.verify:
                bar.describe("timing the whole model")
                whole = guarantee.keep(swaps, decisions, bar.tick)
            bar.advance()
        tuner.flush()
        for decision in decisions.values():
            _log.debug("%s: %s (%s)", decision.name, decision.format, decision.reason)
        for module, sparse in swaps.items():
            sparse.train(module.training)
        already = describe_sparse(model)
        result = replace(model, swaps, options.inplace)
        if not options.inplace:
            missed = check_copy(result, model, swaps, seen, examples)
            if missed:
                take_back(missed, swaps, decisions)
                result = replace(model, swaps)
    summary = Report(
        [*decisions.values(), *already], True, used, str(devices[0]), options.min_speedup, whole,
        tuner.measured, tuner.kept, tuner.watch.share, tuner.clock.load(), tuner.doubted,
        inputs is not None, target,
    )  # fmt: skip
    if evaluate is not None:
        summary.figures = [*figures, _figure(evaluate, result)]
    store(result, summary)
    keep_pretrained(result)
    _log.info(summary.sentence)
    return result


def take_back(
    why: Mapping[nn.Module, str], swaps: dict[nn.Module, Replacement],
    layers: Mapping[nn.Module, LayerReport],
) -> None:  # fmt: skip
    """Take entries out of `swaps`, and note the reasons in the reports of these layers.

    Example:
        >>> take_back({}, {}, {})
    """
    for module, reason in why.items():
        del swaps[module]
        layers[module].format = DENSE
        layers[module].reason += f"; taken back: {reason}"


def _devices(model: nn.Module, layers: Sequence[Layer]) -> list[torch.device]:
    """Where the layers are, or the model where none of them could be read."""
    found = [layer.device for layer in layers if layer.shape]
    return found or [own.device for own in model.parameters()][:1] or [torch.device("cpu")]


def _leave_what_is_read(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Block the layers whose weight the model's code reads: no example inputs tell whether it is
    that, or a call of the layer, that computes."""
    try:
        found = weight_reads(model)
    except Exception as error:  # in code that it cannot follow, of a stranger's
        _log.warning("did not look for weights that the model's code reads: %s", brief(error))
        return
    for layer in layers:
        owner = called(layer.module)
        if owner in found and not layer.blocked:
            layer.blocked = (
                f"{found[owner]} reads its weight, which a sparse layer would unpack every time; "
                "pass example_inputs to have it measured"
            )


def _figure(evaluate: Callable[[nn.Module], float], model: nn.Module) -> float:
    found: Any = evaluate(model)
    try:
        return float(found.detach() if isinstance(found, torch.Tensor) else found)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"expected evaluate to return a number, got {type(found).__name__}; try the model's "
            "accuracy"
        ) from error


def _generates(model: nn.Module) -> bool:
    """Whether `model`, or what it wraps, makes a token at a time, as transformers' models do."""
    return any(callable(getattr(module, "generate", None)) for module in model.modules())


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
