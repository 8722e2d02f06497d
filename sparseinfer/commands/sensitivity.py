"""`sparseinfer sensitivity`: which layers of a checkpoint bear pruning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from sparseinfer.commands.output import UserError, check_output, console, fold, user_errors

if TYPE_CHECKING:
    from sparseinfer.checkpoints.sensitivity import WeightErrors

__all__ = ["sensitivity"]

EPILOG = (
    "Examples:\n\nsparseinfer sensitivity model.pth\n\n"
    "sparseinfer sensitivity model.pth --sparsities 0.5,0.9 --plot sensitivity.png --json"
)


def sensitivity(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT", help="A .pth, .pt, .bin or .safetensors file, or a folder of shards."
        ),
    ],
    sparsities: Annotated[
        str, typer.Option(metavar="LIST", help="Sparsities to try, commas between.")
    ] = "0.5,0.6,0.7,0.8,0.9,0.95",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only tensors, layers or modules of this name."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="No tensors, layers or modules of this name."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Where the state_dict lies in nested ones: model.ema"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it: a .png, .svg or .pdf file.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file of --plot if there is one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell how much each layer's weight loses at each sparsity, by magnitude, without data.

    The error is |W - pruned W| / |W|. It says what a weight loses, not what that costs in accuracy.
    """
    try:
        wanted = [float(part) for part in sparsities.split(",")]
    except ValueError as error:
        raise UserError(
            f"expected numbers with commas between, got {sparsities!r}; try 0.5,0.8,0.9"
        ) from error
    if plot is not None:
        check_output(plot, force)
    with user_errors():
        from sparseinfer.checkpoints.sensitivity import scan_checkpoint

        found = scan_checkpoint(
            checkpoint,
            wanted,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            key=key,
            progress=False if as_json else None,
        )
        if plot is not None:
            found.plot(plot)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        _show(found, plot)


def _show(found: WeightErrors, plot: Path | None) -> None:
    table = Table(box=box.SIMPLE_HEAD, title="relative error of each weight", title_justify="left")
    table.add_column("tensor", overflow="fold", min_width=16)
    for sparsity in found.sparsities:
        table.add_column(f"{sparsity:.0%}", justify="right")
    for name, errors in found.errors.items():
        table.add_row(fold(name), *(f"{error:.3f}" for error in errors))
    out = console()
    out.print(table)
    if plot is not None:
        out.print(f"Written: {fold(str(plot))}.", highlight=False)
