"""`sparseinfer bench`: how long a compiled network takes, alone or beside other engines."""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from sparseinfer.commands.engine_file import bound_inputs, open_engine
from sparseinfer.commands.output import UserError, console, fold
from sparseinfer.commands.run import named_outputs, outputs_of
from sparseinfer.commands.source import example_of, load_source

if TYPE_CHECKING:
    from sparseinfer.export.engine import Engine

__all__ = ["bench"]

EPILOG = (
    "Examples:\n\nsparseinfer bench model.sinf --threads 1,2\n\n"
    "sparseinfer bench model.sinf --compare torch,onnxruntime --source my_package.models:make"
)

OTHERS = ("torch", "onnxruntime", "openvino")

TURN_S = 0.05
"""A turn of each contender, so that a drift of the machine meets all of them alike."""


def bench(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .sinf file.")],
    threads: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Threads, such as 1,2. (default: torch's number)"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.05, max=3600, metavar="S", help="Seconds for each contender.")
    ] = 2.0,
    given: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="FILE", help="Inputs as of run. (default: random numbers)"),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Time others on the same inputs, in turns: torch, onnxruntime, openvino.",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="What the file was exported from, for --compare: a file does not hold the model.",
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Read a .pt2 file that may run anything.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time a compiled network: p50, p90 and p99 of single calls, and calls a second.

    All run in this process, in turns, one caller at a time. Times of other engines are those of
    float32 with as many threads.
    """
    others = [] if compare is None else compare.split(",")
    for name in others:
        if name not in OTHERS:
            raise UserError(f"expected --compare of {', '.join(OTHERS)}, got {name!r}; try torch")
    if others and source is None:
        raise UserError(
            "expected --source with --compare, got none: a .sinf file holds a network as it runs, "
            "and not the model; try --source model.pt2, or --source package.module:factory"
        )
    counts = _counts(threads)
    module = _module(source, trust) if source is not None and others else None
    rows = []
    for count in counts:
        engine = open_engine(model, count)
        arguments = bound_inputs(engine, given) if given else _random(engine)
        rows += _measured(engine, arguments, module, others, seconds)
    if as_json:
        typer.echo(json.dumps({"file": str(model), "seconds": seconds, "rows": rows}, indent=1))
    else:
        _show(rows)


def _counts(text: str | None) -> list[int | None]:
    if text is None:
        return [None]
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and 1 <= int(part) <= 1024 for part in parts):
        raise UserError(f"expected thread counts as --threads, got {text!r}; try 1,2")
    return [int(part) for part in parts]


def _module(source: str, trust: bool) -> Any:
    from sparseinfer.export.compile import dense_model
    from sparseinfer.export.from_onnx import is_onnx

    model = load_source(source, trust)[0]
    return model if is_onnx(model) else dense_model(model)


def _random(engine: Engine) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    kinds = (tensor.dtype for tensor in engine.facts().inputs)
    found = {
        name: example_of(shape, kind, generator)
        for (name, shape), kind in zip(engine.inputs, kinds, strict=True)
    }
    return found | engine.fixed


def _measured(
    engine: Engine, arguments: dict[str, Any], module: Any, others: Sequence[str], seconds: float
) -> list[dict[str, Any]]:
    import torch

    from sparseinfer.timing.measure import torch_threads

    batch = engine.inputs[0][1][0] if engine.inputs and engine.inputs[0][1] else 1
    own = list(outputs_of(engine, arguments).values())
    with torch_threads(engine.threads), torch.inference_mode():
        calls: dict[str, Callable[[], Any]] = {"sparseinfer": lambda: engine(**arguments)}
        reasons: dict[str, str] = {}
        differences: dict[str, float] = {}
        for name in others:
            call, why = _other(name, module, arguments, engine.threads)
            if not why:
                differences[name], why = _difference(own, call)
            if why:
                reasons[name] = why
            else:
                calls[name] = call
        samples = _take_turns(calls, seconds)
    rows = [
        {"engine": name, "threads": engine.threads, **_figures(times, batch),
         "difference": differences.get(name)}
        for name, times in samples.items()
    ]  # fmt: skip
    return rows + [
        {"engine": name, "threads": engine.threads, "why_not": why} for name, why in reasons.items()
    ]


def _other(
    name: str, module: Any, arguments: dict[str, Any], threads: int
) -> tuple[Callable[[], Any], str]:
    from sparseinfer.export.from_onnx import is_onnx

    if is_onnx(module):
        return _other_of_onnx(name, module, arguments, threads)
    args, kwargs = _positional(module, arguments)
    if name == "torch":
        return lambda: module(*args, **kwargs), ""
    from sparseinfer.export.onnxruntime import onnxruntime_call
    from sparseinfer.export.openvino import openvino_call

    call = onnxruntime_call if name == "onnxruntime" else openvino_call
    return call(module, args, kwargs, threads)


def _other_of_onnx(
    name: str, model: Any, arguments: dict[str, Any], threads: int
) -> tuple[Callable[[], Any], str]:
    from sparseinfer.export.compile_onnx import onnxruntime_runs
    from sparseinfer.export.from_onnx import input_shapes
    from sparseinfer.export.openvino import openvino_runs

    if name == "torch":
        return lambda: None, "torch runs no ONNX files"
    names = list(input_shapes(model))
    if not set(names) <= set(arguments):
        return lambda: None, "its inputs have other names: it is another model"
    inputs = [arguments[own] for own in names]
    if name == "onnxruntime":
        return onnxruntime_runs(model, inputs, threads)
    return openvino_runs(model.SerializeToString(), inputs, threads)


def _positional(module: Any, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as an exported program takes them: by position wherever they can be."""
    args, left = [], dict(arguments)
    for own in inspect.signature(module.forward).parameters.values():
        if own.kind == own.KEYWORD_ONLY or own.name not in left:
            break
        args.append(left.pop(own.name))
    return tuple(args), left


def _difference(own: Sequence[Any], call: Callable[[], Any]) -> tuple[float, str]:
    """The largest difference of outputs, and why there is none if so."""
    import torch

    try:
        found = call()
    # Of whatever another engine raises.
    except Exception as error:
        return 0.0, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    outputs = list(found) if isinstance(found, list) else list(named_outputs(found).values())
    theirs = [torch.as_tensor(y) for y in outputs]
    if [tuple(y.shape) for y in theirs] != [tuple(y.shape) for y in own]:
        return 0.0, "its outputs have other shapes: it is another model"
    worst = [(y - z).abs().max().item() for y, z in zip(own, theirs, strict=True)]
    return max(worst), ""


def _take_turns(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """The seconds of single calls, taken in turns, a call more of each thrown away before."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    clock = time.perf_counter
    while any(sum(times) < seconds for times in found.values()):
        for name in names:
            call, times = calls[name], found[name]
            call()
            end = clock() + min(TURN_S, seconds)
            while True:
                start = clock()
                call()
                now = clock()
                times.append(now - start)
                if now >= end:
                    break
        names = names[1:] + names[:1]
    return found


def _figures(times: Sequence[float], batch: int) -> dict[str, Any]:
    """Percentiles by the nearest rank, in milliseconds."""
    ordered = sorted(times)

    def rank(share: float) -> float:
        return 1e3 * ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return {
        "calls": len(times), "min_ms": 1e3 * ordered[0], "p50_ms": rank(0.5), "p90_ms": rank(0.9),
        "p99_ms": rank(0.99), "items_per_s": batch * len(times) / sum(times),
    }  # fmt: skip


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("engine", overflow="fold")
    for heading in ("threads", "calls", "p50 ms", "p90 ms", "p99 ms", "items/s", "differs by"):
        table.add_column(heading, overflow="fold", justify="right")
    measured = [row for row in rows if "why_not" not in row]
    for row in measured:
        difference = row["difference"]
        table.add_row(
            row["engine"], str(row["threads"]), f"{row['calls']:,}",
            *(f"{row[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
            f"{row['items_per_s']:,.4g}", "" if difference is None else f"{difference:.2g}",
        )  # fmt: skip
    out = console()
    out.print(table)
    for row in rows:
        if "why_not" in row:
            out.print(f"{row['engine']} was not timed: {fold(row['why_not'])}", highlight=False)
