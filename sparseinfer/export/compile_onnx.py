"""An ONNX model as an engine: imported, compared with a reference run, and timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseinfer.convert.observe import list_examples
from sparseinfer.export.bfloat16 import bfloat16_engine, rounding_error
from sparseinfer.export.dynamic import at_batch, batched_inputs, mark_batch
from sparseinfer.export.engine import Engine, check_threads
from sparseinfer.export.errors import UnsupportedOperators
from sparseinfer.export.file import write_graph
from sparseinfer.export.from_onnx import (
    INSTEAD,
    from_onnx,
    input_shapes,
    input_types,
    read_onnx,
    with_all_outputs,
)
from sparseinfer.export.from_onnx.reference import (
    Reference,
    onnxruntime_session,
    reference_of,
    rounded_proto,
)
from sparseinfer.export.golden import add_golden, own_outputs
from sparseinfer.export.graph import Graph
from sparseinfer.export.int8 import engine_scheme, int8_engine
from sparseinfer.export.passes import optimize
from sparseinfer.export.report import Race
from sparseinfer.export.signature import Signature, tensors_of
from sparseinfer.timing.measure import compare, torch_threads

__all__ = ["LEAST", "MORE", "compile_onnx", "example_of", "onnx_values"]

EPS = 2.0**-23

MOST_RANDOM = 2**28
"""Elements of an input that is made up: a file names any size in a few bytes."""

MORE = 64
"""Times what the reference moves by when each input is rounded once more: so many layers round, and
sums of many terms by more than that."""

LEAST = 256 * EPS
"""Of the largest output: an error that is allowed also where the reference does not move."""

STEPS = 8
"""Of 255 of the largest output, of a quantised model: a value near the middle between two steps is
rounded to either, and layers after it make more of that."""


def compile_onnx(
    source: Any,
    example_inputs: Any,
    *,
    threads: int | None,
    weights: str,
    activations: str | None,
    calibration: Any,
    dynamic: Any,
    check: bool,
    baselines: Sequence[str],
    budget_s: float,
    target: str | None,
    golden: bool,
) -> Engine:
    """What `sparseinfer.compile` does with an ONNX model.

    Raises:
        ImportError: the packages that read ONNX are not installed.
        OSError, TypeError, ValueError, UnsupportedOperators, RuntimeError: as `compile`.
    """
    used = check_threads(threads)
    scheme = engine_scheme(weights, activations, calibration)
    proto = read_onnx(source)
    inputs = example_of(proto, example_inputs)
    batched = batched_inputs(dynamic, inputs)
    _check_open(proto, batched)
    with torch.inference_mode(False), torch.no_grad():
        graph = _graph(proto, inputs)
        signature = _signature(graph)
        call_at = partial(at_batch, (), inputs, signature.parameters, batched)
        batches = mark_batch(
            graph, signature, batched, lambda batch: _graph(proto, call_at(batch)[1])
        )
        optimize(graph)
        rounds, of_moment = _rounds(graph), _dynamic(proto)
        notes = _notes(graph, of_moment)
        if scheme.weights != "float32" and rounds:
            raise ValueError(
                f"expected a float32 model for {scheme}, got one that is quantised, and keeps "
                "its own scales; try without weights and calibration"
            )
        exact = engine = Engine(_file(graph, signature, target), used)
        pairs: list[tuple[Tensor, float]] = []
        error = ""
        if check:
            run, name = reference_of(proto)
            pairs, error = _compared(engine, inputs, run, name, rounds or of_moment > 0)
            for batch in batches:
                other = call_at(batch)[1]
                _compared(engine, other, run, name, rounds or of_moment > 0)
        if scheme.quantizes:
            engine, error = int8_engine(graph, signature, exact, calibration, target)
        elif scheme.weights == "bfloat16":
            engine = bfloat16_engine(graph, signature, scheme, used, target)
            if check:
                rough, _ = reference_of(rounded_proto(proto))
                error = rounding_error(
                    tensors_of(engine(**inputs)),
                    rough({key: _rounded(x) for key, x in inputs.items()}),
                    [true for true, _ in pairs], name,
                )  # fmt: skip
        if check and engine is not exact:
            pairs = own_outputs(tensors_of(engine(**inputs)), pairs, LEAST)
        file = engine.file
        if golden:
            file = add_golden(file, list(inputs.values()), *zip(*pairs, strict=True))
        races = [_race(proto, engine, inputs, budget_s)] if baselines else []
        if engine is not exact and baselines:
            both = [partial(own, **inputs) for own in (exact, engine)]
            races.append(Race("the float32 engine", compare(*both, budget_s=budget_s)))
    told = [error] if scheme.quantizes else [error, *notes]
    return Engine(file, used, races, "; ".join(filter(None, told)))


def _graph(proto: Any, inputs: Mapping[str, Tensor]) -> Graph:
    return from_onnx(proto, {name: x.shape for name, x in inputs.items()})


def _file(graph: Graph, signature: Signature, target: str | None) -> Tensor:
    try:
        return write_graph(graph, signature.to_json(), target)
    except UnsupportedOperators as error:
        raise UnsupportedOperators(error.missing, INSTEAD) from None


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float() if x.is_floating_point() else x


def _check_open(proto: Any, batched: Mapping[str, int]) -> None:
    """Whether a model leaves the dimension open that is to vary."""
    shapes = input_shapes(proto)
    for name in batched:
        shape = shapes[name]
        if shape is not None and shape[0] is not None:
            raise ValueError(
                f"expected a model whose batch is open for dynamic, got {_text(shape)} of {name}; "
                "try exporting it with dynamic_shapes (or dynamic_axes) for dimension 0"
            )


def example_of(proto: Any, example_inputs: Any) -> dict[str, Tensor]:
    """The inputs of a model by name: those that are given, else random ones of its shapes.

    Raises:
        TypeError: they are not tensors of the model's types, or not those of the model.
        ValueError: there is not one example, a shape is another than the model's, or it is open
            and no example closes it.
    """
    shapes, kinds = input_shapes(proto), input_types(proto)
    if example_inputs is None:
        return _random(shapes, kinds)
    examples = list_examples(example_inputs)
    if len(examples) != 1:
        raise ValueError(
            f"expected one example of the inputs, got {len(examples)}; try an engine for each shape"
        )
    names = list(shapes)
    given = Signature(names, names, {}, {}, 0).bind(*examples[0])
    for name, tensor in zip(names, given, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"expected a tensor for {name}, got {type(tensor).__name__}; try torch.as_tensor"
            )
        kind = kinds[name]
        if tensor.dtype != kind or tensor.device.type != "cpu":
            raise TypeError(
                f"expected {str(kind).replace('torch.', '')} on the CPU for {name}, got "
                f"{tensor.dtype} on {tensor.device}; try .to({kind}).cpu()"
            )
        shape = shapes[name]
        if shape is not None and (
            len(shape) != tensor.dim()
            or any(a not in (None, b) for a, b in zip(shape, tensor.shape, strict=True))
        ):
            raise ValueError(
                f"expected {_text(shape)} for {name}, got {list(tensor.shape)}; try the shape of "
                "the model"
            )
    return {name: own.detach().contiguous() for name, own in zip(names, given, strict=True)}


def _random(
    shapes: Mapping[str, list[int | None] | None], kinds: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """Of integers and booleans 0 and 1, which are ids and masks alike."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in shapes.items():
        sizes = [size for size in shape or () if size is not None]
        if shape is None or len(sizes) < len(shape):
            raise ValueError(
                f"expected an example of {name}, whose shape the model leaves open as "
                f"{_text(shape)}, got none; try example_inputs=torch.zeros(...), or --example"
            )
        if math.prod(sizes) > MOST_RANDOM:
            raise ValueError(
                f"expected an example of {name}, {_text(shape)} of which is too large to make "
                "one up, got none; try example_inputs=..."
            )
        if kinds[name] == torch.float32:
            found[name] = torch.randn(sizes, generator=generator)
        else:
            found[name] = torch.randint(2, sizes, generator=generator).to(kinds[name])
    return found


def _text(shape: list[int | None] | None) -> str:
    if shape is None:
        return "any"
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _signature(graph: Graph) -> Signature:
    names = [value.name for value in graph.inputs]
    numbers = list(range(len(graph.outputs)))
    return Signature(names, names, {}, {}, numbers[0] if len(numbers) == 1 else ["tuple", *numbers])


def _rounds(graph: Graph) -> bool:
    return any(node.op in ("quantize", "dequantize") for node in graph.nodes)


def _dynamic(proto: Any) -> int:
    """How many tensors a model rounds by scales that it finds at run time."""
    functions = [own.node for own in proto.functions]
    nodes = [node for some in (proto.graph.node, *functions) for node in some]
    return sum(node.op_type == "DynamicQuantizeLinear" for node in nodes)


def _notes(graph: Graph, dynamic: int) -> list[str]:
    """What of a quantised model computes in float32."""
    notes = []
    floats = {node.output for node in graph.nodes if node.op == "dequantize"}
    wide = [node.name for node in graph.nodes if not floats.isdisjoint(node.inputs)]
    if wide:
        notes.append(f"quantised operators that run in float32: {', '.join(wide)}")
    if dynamic:
        notes.append(
            f"{dynamic} inputs of layers that the model rounds by scales of the moment "
            "(DynamicQuantizeLinear) stay float32; calibration data gives them scales: "
            "weights='int8', calibration=loader"
        )
    return notes


def _compared(
    engine: Engine, inputs: Mapping[str, Tensor], run: Reference, name: str, rounds: bool
) -> tuple[list[tuple[Tensor, float]], str]:
    """Hold the engine's outputs against a reference run, and say how close they are."""
    given = tensors_of(engine(**inputs))
    expected = run(inputs)
    if [y.shape for y in given] != [y.shape for y in expected]:
        raise RuntimeError(
            f"expected outputs of {[list(y.shape) for y in expected]} as of {name}, got "
            f"{[list(y.shape) for y in given]}; this is a fault of the export: please report it"
        )
    nudged = run(_nudged(inputs))
    worst, pairs = 0.0, []
    for y, true, near in zip(given, expected, nudged, strict=True):
        largest = float(true.abs().max())
        error = float((y.double() - true.double()).abs().max())
        allowed = MORE * float((near.double() - true.double()).abs().max()) + LEAST * largest
        if rounds:
            allowed = max(allowed, STEPS * largest / 255)
        if not error <= allowed:
            raise RuntimeError(
                f"expected the engine's outputs within {allowed:.3g} of {name}'s, got {error:.3g}; "
                "this is a fault of the export: please report it; try check=False to look at the "
                "engine"
            )
        worst = max(worst, error)
        pairs.append((true.double(), allowed))
    return pairs, f"outputs within {worst:.2g} of {name}'s"


def _nudged(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of floats rounded once more, up or down."""
    signs = torch.Generator().manual_seed(0)
    return {
        key: x * (1 + EPS * (2 * torch.randint(2, x.shape, generator=signs) - 1))
        if x.is_floating_point()
        else x
        for key, x in inputs.items()
    }


def onnx_values(
    source: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """What every node of an ONNX model gives, by its name: with its inputs rounded once more, and
    as they are; and what ran it.

    The model is the simplified one, whose values an engine's tensors are named for.
    """
    proto = read_onnx(source)
    names = list(input_shapes(proto))
    given = Signature(names, names, {}, {}, 0).bind(args, kwargs)
    inputs = dict(zip(names, given, strict=True))
    whole, known = with_all_outputs(proto, {name: x.shape for name, x in inputs.items()})
    run, reference = reference_of(whole)
    found = [
        dict(zip(known, map(torch.Tensor.double, run(each)), strict=True))
        for each in (_nudged(inputs), inputs)
    ]
    return found[0], found[1], reference


def _race(proto: Any, engine: Engine, inputs: Mapping[str, Tensor], budget_s: float) -> Race:
    """The engine against ONNX Runtime, which is what runs such a model as it is."""
    call, why = onnxruntime_runs(proto, list(inputs.values()), engine.threads)
    if why:
        return Race("ONNX Runtime", None, why)
    with torch_threads(engine.threads):
        return Race("ONNX Runtime", compare(call, lambda: engine(**inputs), budget_s=budget_s))


def onnxruntime_runs(
    proto: Any, inputs: Sequence[Tensor], threads: int
) -> tuple[Callable[[], object], str]:
    """A call of an ONNX model by ONNX Runtime on these inputs, and why there is none if so."""
    session, why = onnxruntime_session(proto, threads)
    if session is None:
        return lambda: None, why
    names = list(input_shapes(proto))
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return lambda: session.run(None, feeds), ""
