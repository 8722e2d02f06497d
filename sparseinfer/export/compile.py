"""sparseinfer.compile: a model in, one fused plan of all of it out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

from sparseinfer.convert.observe import Example, list_examples
from sparseinfer.convert.replace import replace
from sparseinfer.convert.to_dense import to_dense
from sparseinfer.export.bfloat16 import bfloat16_engine, bfloat16_error
from sparseinfer.export.compile_onnx import compile_onnx
from sparseinfer.export.dynamic import at_batch, batched_inputs, mark_batch
from sparseinfer.export.engine import Engine, check_threads
from sparseinfer.export.file import write_graph
from sparseinfer.export.from_onnx import is_onnx
from sparseinfer.export.from_torch import from_torch
from sparseinfer.export.golden import add_golden, own_outputs
from sparseinfer.export.int8 import engine_scheme, int8_engine
from sparseinfer.export.onnxruntime import onnxruntime_call
from sparseinfer.export.passes import optimize
from sparseinfer.export.program import module_of
from sparseinfer.export.report import Race
from sparseinfer.export.signature import arguments_of, signature_of, tensors_of
from sparseinfer.layers.kinds import kind_of_sparse
from sparseinfer.ops.memory import require_model_memory
from sparseinfer.timing.measure import compare, torch_threads

__all__ = ["BASELINES", "LEAST", "MORE", "compile", "dense_model"]

_log = logging.getLogger("sparseinfer.export")

BASELINES = ("eager", "onnxruntime")
"""What an engine may be timed against: the model as it was, and ONNX Runtime on all of it."""

EPS = 2.0**-23

MORE = 8
"""Times the model's own error against float64 that the engine's may be."""

LEAST = 64 * EPS
"""Of the largest output: an error that is allowed also where the model happens to be exact."""


def compile(
    model: nn.Module | ExportedProgram | Any,
    example_inputs: Any = None,
    *,
    threads: int | None = None,
    weights: str = "float32",
    activations: str | None = None,
    calibration: Any = None,
    dynamic: Any = None,
    check: bool = True,
    baselines: Sequence[str] = ("eager",),
    budget_s: float = 1.0,
    target: str | None = None,
    golden: bool = False,
) -> Engine:
    """Compile a model, pruned or not, into one plan that runs without Python between its layers.

    Batch norms, activations and residual additions become part of the layers before them; pruned
    weights are stored without their zeros; intermediate results share one arena. The engine takes
    inputs of the types and shapes of the example: float32, int64 (ids, masks) or bool. The model
    itself stays as it is.

    Args:
        model: in evaluation mode, on the CPU, in float32; converted ones are taken as well, and
            what `torch.export.export` gives. Or an ONNX model: the path of a .onnx file, an
            `onnx.ModelProto` or an `onnx_ir.Model`, quantised ones with their own scales.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments;
            None: those that an exported program carries, or random ones of an ONNX model's
            shapes.
        threads: with how many the engine runs; None: `torch.get_num_threads()`.
        weights: the type of the stored weights, `"float32"`, `"bfloat16"` or `"int8"` (a scale an
            output row).
        activations: what they are multiplied with; None: what suits them. With `"int8"` values are
            bytes from layer to layer, and floats around what has no kernel for bytes. Weights of
            `"bfloat16"` compute in float32, or with `"bfloat16"` by products of two such, whose
            sums are float32.
        calibration: for `"int8"`: data as `sparseinfer.calibrate` takes it, of any batch size.
        dynamic: a batch that may vary, dimension 0 of the inputs: `"batch"` for all of them, or as
            in `torch.export`, by name, `{"x": {0: "batch"}}` or `{"x": {0: Dim("batch", max=64)}}`.
            The model is exported at batch 1 and one more, too, which have to agree. An ONNX model
            has to leave that dimension open.
        check: compare the engine's outputs with the model's: both against the model in float64;
            an ONNX model's with those of ONNX Runtime or, without it, onnx's ReferenceEvaluator.
        baselines: what to time it against, of `BASELINES`, interleaved; the report tells. An ONNX
            model is run by ONNX Runtime.
        budget_s: seconds for each of these comparisons.
        target: the machine that will run it, one of `sparseinfer.formats.TARGETS`; None: this one.
        golden: keep the example and the model's outputs in the file, for `Engine.selftest`.

    Returns:
        The engine; `engine.report()` tells what it is and how fast it was.

    Raises:
        TypeError: `model` is no nn.Module, or an example is neither a tensor nor a plain value.
        ValueError: the model is in training mode, on another device or in another type; there is
            not one example, or an unknown baseline, type or target; threads is less than 1;
            `golden` without `check`; `dynamic` does not fit the inputs, or the model does not
            compute the same at every batch; calibration data is missing, given for float32, empty,
            of another shape, or holds NaN or Inf.
        NotImplementedError: engines of these types are not built yet.
        UnsupportedOperators: a ValueError that lists every operation that the engine has not.
        RuntimeError: the engine's outputs differ from the model's by more than rounding, or the
            memory of a parameter was released.
        ImportError, OSError: an ONNX file cannot be read.

    Source: the arena is planned greedily by size (Pisarchyk and Lee, "Efficient memory management
    for deep neural net inference", 2020).

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
        >>> engine = compile(model, torch.zeros(1, 64), budget_s=0.05)
        >>> [node["op"] for node in engine.report().nodes]
        ['linear', 'linear']
    """
    if golden and not check:
        raise ValueError("expected check=True with golden=True, got False; try without golden")
    for baseline in baselines:
        if baseline not in BASELINES:
            raise ValueError(
                f"expected baselines of {', '.join(BASELINES)}, got {baseline!r}; try 'eager'"
            )
    if is_onnx(model):
        return compile_onnx(
            model, example_inputs, threads=threads, weights=weights, activations=activations,
            calibration=calibration, dynamic=dynamic, check=check, baselines=baselines,
            budget_s=budget_s, target=target, golden=golden,
        )  # fmt: skip
    own_example: list[Example] = []
    if isinstance(model, ExportedProgram):
        own_example = [_own_example(model)] if example_inputs is None else []
        model = module_of(model)
    _check_model(model)
    used = check_threads(threads)
    scheme = engine_scheme(weights, activations, calibration)
    examples = own_example or list_examples(example_inputs)
    if len(examples) != 1:
        raise ValueError(
            f"expected one example of the inputs, got {len(examples)}; try an engine for each shape"
        )
    args, kwargs = tree_map(_plain, examples[0])
    _, given = arguments_of(model.forward, args, kwargs)
    batched = batched_inputs(dynamic, given)
    with torch.inference_mode(False), torch.no_grad():
        dense = dense_model(model)
        graph, program = from_torch(dense, args, kwargs)
        in_spec, outputs = program.call_spec.in_spec, program.call_spec.out_spec
        in_order = {name: kwargs[name] for name in in_spec.child(1).context}
        is_tensor = [name is not None for name in program.graph_signature.user_outputs]
        signature = signature_of(model.forward, args, in_order, outputs, is_tensor)
        call_at = partial(at_batch, args, kwargs, signature.parameters, batched)
        batches = mark_batch(
            graph, signature, batched, lambda batch: from_torch(dense, *call_at(batch))[0]
        )
        optimize(graph)
        _log.debug("%s", graph)
        file = write_graph(graph, signature.to_json(), target)
        engine = exact = Engine(file, used)
        pairs, error = _compare(dense, engine, args, kwargs) if check else ([], "")
        for batch in batches if check else ():
            _compare(dense, engine, *call_at(batch))
        if scheme.quantizes:
            engine, error = int8_engine(graph, signature, exact, calibration, target)
        elif scheme.weights == "bfloat16":
            engine = bfloat16_engine(graph, signature, scheme, used, target)
            if check:
                error = bfloat16_error(dense, engine, args, kwargs, [true for true, _ in pairs])
        if engine is not exact:
            file = engine.file
            if check:
                pairs = own_outputs(tensors_of(engine(*args, **kwargs)), pairs, LEAST)
        if golden:
            file = add_golden(file, signature.bind(args, kwargs), *zip(*pairs, strict=True))
        races = [_race(name, model, dense, engine, args, kwargs, budget_s) for name in baselines]
        if engine is not exact and baselines:
            both = [partial(own, *args, **kwargs) for own in (exact, engine)]
            races.append(Race("the float32 engine", compare(*both, budget_s=budget_s)))
    for race in races:
        _log.log(logging.WARNING if race.is_slower else logging.INFO, "%s", race)
    return Engine(file, used, races, error)


def dense_model(model: nn.Module | ExportedProgram) -> nn.Module:
    """The model with torch's own layers alone: itself, or a copy where it was converted.

    Example:
        >>> model = nn.ReLU()
        >>> dense_model(model) is model
        True
    """
    if isinstance(model, ExportedProgram):
        return module_of(model)
    return to_dense(model) if any(map(kind_of_sparse, model.modules())) else model


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"expected an nn.Module, got {type(model).__name__}; try the model that the state_dict "
            "belongs to"
        )
    require_model_memory(model)
    if any(module.training for module in model.modules()):
        raise ValueError("expected a model in evaluation mode, got training mode; try model.eval()")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(
                f"expected a model on the CPU, got {name} on {tensor.device}; try model.cpu(), or "
                "sparseinfer.convert_to_sparse, which runs on a GPU"
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(
                f"expected a model in float32, got {name} in {tensor.dtype}; try model.float()"
            )


def _own_example(program: ExportedProgram) -> Example:
    if program.example_inputs is None:
        raise ValueError(
            "expected example inputs, got a program that carries none; try example_inputs=..."
        )
    args, kwargs = program.example_inputs
    return tuple(args), dict(kwargs)


def _plain(part: Any) -> Any:
    return part.detach() if isinstance(part, Tensor) else part


def _compare(
    model: nn.Module, engine: Engine, args: Any, kwargs: Any
) -> tuple[list[tuple[Tensor, float]], str]:
    """Hold the engine's outputs against the model's, and say how close they are.

    Each output is given back as it is in float64, with the error that is allowed. Rounding spreads
    through a network as its layers amplify it, which the model's own error shows.
    """
    given = tensors_of(engine(*args, **kwargs))
    dense = tensors_of(model(*args, **kwargs))
    wide_args, wide_kwargs = tree_map(_widened, (args, kwargs))
    exact = tensors_of(replace(model, {}).double()(*wide_args, **wide_kwargs))
    if [y.shape for y in given] != [y.shape for y in exact]:
        raise RuntimeError(
            f"expected outputs of {[list(y.shape) for y in exact]}, got "
            f"{[list(y.shape) for y in given]}; this is a fault of the export: please report it"
        )
    worst = 0.0
    allowed_errors = []
    for y, own, true in zip(given, dense, exact, strict=True):
        bad = int((~true.isfinite()).sum())
        if bad:
            raise ValueError(
                f"expected a model that gives finite outputs for the example, got {bad} NaN or Inf "
                f"among {true.numel()}; try weights and inputs without them"
            )
        error = (y.double() - true).abs().max().item()
        allowed = MORE * (own.double() - true).abs().max() + LEAST * true.abs().max()
        if not error <= allowed:
            raise RuntimeError(
                f"expected the engine's outputs within {allowed:.3g} of the model in float64, got "
                f"{error:.3g}; this is a fault of the export: please report it; try check=False "
                "to look at the engine"
            )
        worst = max(worst, error)
        allowed_errors.append(float(allowed))
    pairs = list(zip(exact, allowed_errors, strict=True))
    return pairs, f"outputs within {worst:.2g} of the model in float64"


def _widened(part: Any) -> Any:
    return part.double() if isinstance(part, Tensor) and part.is_floating_point() else part


def _race(
    name: str,
    model: nn.Module,
    torch_only: nn.Module,
    engine: Engine,
    args: Any,
    kwargs: Any,
    budget_s: float,
) -> Race:
    with torch_threads(engine.threads):
        if name == "eager":
            other, why = "the model as it was", ""
            dense: Any = lambda: model(*args, **kwargs)  # noqa: E731
        else:
            other = "ONNX Runtime"
            dense, why = onnxruntime_call(torch_only, args, kwargs, engine.threads)
        if why:
            return Race(other, None, why)
        return Race(other, compare(dense, lambda: engine(*args, **kwargs), budget_s=budget_s))
