"""`sparseinfer inspect`: what a checkpoint holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from sparseinfer.commands.engine_file import inspect_engine, is_engine_file
from sparseinfer.commands.output import (
    UserError,
    console,
    fold,
    percent,
    size_text,
    user_errors,
)

if TYPE_CHECKING:
    from sparseinfer.checkpoints.facts import Facts

__all__ = ["inspect"]

EPILOG = (
    "Examples:\n\nsparseinfer inspect model.safetensors\n\nsparseinfer inspect folder/ --json\n\n"
    "sparseinfer inspect model.sinf\n\nsparseinfer inspect model.sinf --operators"
)


def inspect(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT",
            help="A .pth, .pt, .bin or .safetensors file, a folder of shards, or a .sinf file.",
        ),
    ],
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Where the state_dict lies in nested ones: model.ema"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    operators: Annotated[
        bool,
        typer.Option(
            "--operators",
            help="Print a .sinf file's operators, for SPARSEINFER_OPERATORS of the C library.",
        ),
    ] = False,
) -> None:
    """Tell of every tensor its shape, zeros, their pattern, and the gain to expect here.

    The gain is a model's guess; convert_to_sparse measures it. Of a .sinf file its nodes are told.
    """
    if is_engine_file(checkpoint):
        if key is not None:
            raise UserError(f"{checkpoint}: expected no --key of a model file; try without it")
        if operators and as_json:
            raise UserError("expected --operators or --json, got both; try one of them")
        inspect_engine(checkpoint, as_json, operators)
        return
    if operators:
        raise UserError(f"{checkpoint}: expected a model file with --operators; try a .sinf file")
    with user_errors():
        from sparseinfer.checkpoints.facts import inspect_checkpoint

        facts = inspect_checkpoint(checkpoint, key, progress=False if as_json else None)
    if as_json:
        typer.echo(json.dumps(facts.to_dict(), indent=1))
        return
    _show(facts)


def _show(facts: Facts) -> None:
    # Every column may fold, so that none is cut where the terminal is narrow.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("tensor", overflow="fold")
    for heading in ("shape", "dtype"):
        table.add_column(heading, overflow="fold")
    for heading in ("zeros", "bytes"):
        table.add_column(heading, overflow="fold", justify="right")
    table.add_column("pattern, or why no weight", overflow="fold")
    table.add_column("gain", overflow="fold", justify="right")
    for tensor in facts.tensors:
        notes = [tensor.pattern if tensor.prunable else f"({tensor.reason})"]
        if tensor.stored != "plain":
            notes.append(f"stored as {tensor.stored}")
        if tensor.nonfinite:
            notes.append(f"{tensor.nonfinite} NaN or Inf")
        table.add_row(
            fold(tensor.name),
            "x".join(map(str, tensor.shape)) or "scalar",
            tensor.dtype,
            percent(tensor.zeros, tensor.elements),
            size_text(tensor.bytes),
            fold(", ".join(notes)),
            "" if tensor.gain is None else f"{tensor.gain:.2f}x",
        )
    out = console()
    out.print(table)
    out.print()
    totals = facts.totals
    files = "1 file" if facts.files == 1 else f"{facts.files} files"
    out.print(
        f"{totals['tensors']} tensors with {totals['elements']:,} elements, "
        f"{size_text(totals['bytes'])}, in {files} ({facts.container}). "
        f"{totals['prunable_tensors']} are weights of layers: {totals['prunable_elements']:,} "
        f"elements, {percent(totals['zeros'], totals['prunable_elements'])} of them zero.",
        highlight=False,
    )
    for text in facts.notes:
        out.print(f"warning: {fold(text)}", highlight=False)
    if facts.others:
        out.print(f"Beside the state_dict: {fold(', '.join(facts.others))}.", highlight=False)
