"""`sparseinfer export`: a model in, one file of a compiled network out, or a folder for C."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparseinfer.commands.calibration import calibration_of
from sparseinfer.commands.engine_file import is_engine_file, open_engine
from sparseinfer.commands.export_c import FORMATS, check_folder, export_c
from sparseinfer.commands.output import (
    UserError,
    check_output,
    console,
    fold,
    of_file,
    size_text,
)
from sparseinfer.commands.source import examples_of, load_source
from sparseinfer.switches import logging_at

if TYPE_CHECKING:
    from sparseinfer.export.engine import Engine
    from sparseinfer.export.report import Race

__all__ = ["export"]

EPILOG = (
    "Examples:\n\nsparseinfer export model.pt2 -o model.sinf\n\n"
    "sparseinfer export model.onnx --baselines onnxruntime -o model.sinf\n\n"
    "sparseinfer export my_package.models:make --example 1x3x224x224 -o model.sinf --golden\n\n"
    "sparseinfer export model.pt2 --weights int8 --calibration samples.npy -o model.sinf\n\n"
    "sparseinfer export model.pt2 --target aarch64-neon --baselines none -o model.sinf\n\n"
    "sparseinfer export model.sinf --format amalgamation -o firmware/model"
)

KNOWN = ("float32", "bfloat16", "int8")
"""The words of `sparseinfer.compile`."""


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A .pt2 file of torch.export.save; a .onnx file; package.module:factory, a "
            "function that gives a model, or a model and its example inputs; or, for C, a .sinf "
            "file.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="OUT", help="The .sinf file; for C a folder."),
    ],
    format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="sinf: the model file. c: it as an object to link with the C library, and a "
            "header. amalgamation: plain C that needs no library.",
        ),
    ] = "sinf",
    example: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHAPE",
            help="An input: a shape such as 1x3x224x224, or a .npy file; once for each input, in "
            "order. (default: what the source brings)",
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(metavar="TYPE", help="Type of the stored weights: float32, bfloat16 or int8."),
    ] = "float32",
    activations: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="What they are multiplied with, of the same words. (default: what suits them)",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="For int8, samples: a .npy file of them, a .npz or .safetensors file with an "
            "array for each input by its name or in order, or a folder of .npy or .npz files.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The machine that will run it. (default: this one)"),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, metavar="N", help="Threads to time with. (default: torch's number)"
        ),
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(metavar="LIST", help="What to time it against: eager, onnxruntime; or none."),
    ] = "eager",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare its outputs with the model's.")
    ] = True,
    golden: Annotated[
        bool,
        typer.Option("--golden", help="Keep the example and its outputs in the file, for a test."),
    ] = False,
    dynamic_batch: Annotated[
        bool,
        typer.Option("--dynamic-batch", help="Take any batch, dimension 0 of every input."),
    ] = False,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Read a .pt2 file that may run anything, as a pickle may."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compile a model into one file, which runs without Python between its layers, or without any.

    The file is checked against the model, and timed against it, before it is written.
    """
    if format != "sinf":
        check_folder(out, format, force)
    if is_engine_file(Path(source)):
        given = {
            "--example": example, "--activations": activations, "--calibration": calibration,
            "--target": target, "--golden": golden, "--dynamic-batch": dynamic_batch,
            "--trust": trust, "--weights": weights != "float32",
        }  # fmt: skip
        _check_file_options(source, format, [name for name, value in given.items() if value])
        export_c(open_engine(Path(source), threads), out, format, as_json)
        return
    for option, value in (("weights", weights), ("activations", activations)):
        _check_word(option, value)
    if "int8" in (weights, activations) and calibration is None:
        raise UserError(
            "expected --calibration with int8, got none; try --calibration samples.npy, a few "
            "hundred samples of the training data"
        )
    if format == "sinf":
        check_output(out, force)
    samples = None if calibration is None else calibration_of(calibration)
    model, own_example = load_source(source, trust)
    examples = examples_of(example) if example else own_example
    # The report says what the log would.
    with logging_at(logging.ERROR, "sparseinfer"):
        engine = _compiled(source, model, examples, {
            "weights": weights, "activations": activations, "calibration": samples,
            "target": target, "threads": threads, "check": check, "golden": golden,
            "dynamic": "batch" if dynamic_batch else None,
            "baselines": () if baselines == "none" else baselines.split(","),
        })  # fmt: skip
    if format != "sinf":
        export_c(engine, out, format, as_json)
        return
    try:
        engine.save(out)
    except OSError as error:
        raise of_file(error) from error
    if as_json:
        typer.echo(json.dumps(_data(engine, out), indent=1))
    else:
        _show(engine, out)


def _check_file_options(source: str, format: str, given: list[str]) -> None:
    """Refuse what only a model that is compiled has, for a file that is compiled already."""
    if format == "sinf":
        raise UserError(
            f"{source}: expected a model to compile, got a model file; try --format "
            f"{' or '.join(FORMATS)}"
        )
    if given:
        raise UserError(
            f"{source}: expected no {given[0]} of a model file, which is compiled already; try "
            "without it, or the model that it was compiled from"
        )


def _check_word(option: str, value: str | None) -> None:
    if value is not None and value not in KNOWN:
        raise UserError(f"expected --{option} of {', '.join(KNOWN)}, got {value!r}; try float32")


def _compiled(source: str, model: Any, example: Any, options: dict[str, Any]) -> Engine:
    import torch

    from sparseinfer.export.compile import compile
    from sparseinfer.export.errors import UnsupportedOperators
    from sparseinfer.export.from_onnx import is_onnx

    # A program compiles with the example that it carries.
    is_program = isinstance(model, torch.export.ExportedProgram)
    if is_program and example is model.example_inputs:
        example = None
    brings = is_onnx(model) or (is_program and model.example_inputs is not None)
    if example is None and not brings:
        raise UserError(
            f"{source}: expected example inputs, got none; try --example 1x3x224x224, or a factory "
            "that gives a model and its inputs"
        )
    try:
        return compile(model, example, **options)
    except UnsupportedOperators as error:
        out = console()
        for missing in error.missing:
            out.print(f"missing: {fold(str(missing))}", highlight=False)
        raise UserError(
            f"{source}: expected a model of operators that the engine has, got "
            f"{len(error.missing)} that it has not; try sparseinfer.convert_to_sparse, which "
            "leaves these parts to torch"
        ) from error
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: {first}") from error


def _data(engine: Engine, out: Path) -> dict[str, Any]:
    report, facts = engine.report(), engine.facts()
    return {
        "output": str(out), "bytes": facts.file_bytes, "arena_bytes": facts.arena_bytes,
        "threads": engine.threads, "totals": facts.totals, "error": report.error,
        "races": [_race(race) for race in report.races],
    }  # fmt: skip


def _race(race: Race) -> dict[str, Any]:
    found = race.found
    if found is None:
        return {"other": race.other, "why_not": race.why}
    return {
        "other": race.other, "speedup": found.speedup, "low": found.low, "high": found.high,
        "other_ms": found.dense_ms, "engine_ms": found.sparse_ms, "is_slower": race.is_slower,
        "doubt": found.doubt,
    }  # fmt: skip


def _show(engine: Engine, out_path: Path) -> None:
    report, totals, out = engine.report(), engine.facts().totals, console()
    kept = totals["nonzeros"] / max(1, totals["weights"])
    out.print(
        f"{totals['nodes']} nodes, {totals['weights']:,} weights, {1 - kept:.1%} of them zero.",
        highlight=False,
    )
    told = report.error or "outputs were not compared with the model"
    out.print(fold(f"{told[:1].upper()}{told[1:]}."), highlight=False)
    for race in report.races:
        out.print(fold(f"{race}."), highlight=False)
    size = size_text(report.file_bytes)
    out.print(f"Written: {fold(str(out_path))} ({size}).", highlight=False)
