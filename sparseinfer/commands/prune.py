"""`sparseinfer prune`: a checkpoint in, a pruned one out."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from sparseinfer.commands.output import (
    UserError,
    check_output,
    console,
    fold,
    percent,
    size_text,
    user_errors,
)

if TYPE_CHECKING:
    from sparseinfer.checkpoints.prune import Pruned

__all__ = ["prune"]

EPILOG = (
    "Examples:\n\nsparseinfer prune model.pth --amount 0.9 -o pruned.pth\n\n"
    "sparseinfer prune model.pth --method threshold --amount 0.01 --dry-run\n\n"
    "sparseinfer prune folder/ --structure 2:4 --exclude '*.lm_head' -o pruned/ --format sparse"
)


def prune(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT", help="A .pth, .pt, .bin or .safetensors file, or a folder of shards."
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="magnitude: the smallest |w| go; threshold: each |w| up to --amount; random.",
        ),
    ] = "magnitude",
    amount: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT",
            help="Fraction such as 0.9 or 90%, or a count of 100 or more; the threshold for "
            "threshold. Zeros already there count.",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Number of weights, instead of --amount."),
    ] = None,
    scope: Annotated[
        str,
        typer.Option(metavar="NAME", help="global: all weights compete; layer: each by itself."),
    ] = "global",
    structure: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="unstructured; 2:4 (2 of every 4 input channels kept); blocks as 4x1 (output rows "
            "x input columns); filters; channels.",
        ),
    ] = "unstructured",
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Only tensors, layers or modules of this name; what a guess left out alone is "
            "taken.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="No tensors, layers or modules of this name."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="OUT", help="Output: a file, or a folder where CKPT is one."
        ),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace CKPT, instead of -o.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is there, CKPT too.")
    ] = False,
    format: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="dense: as CKPT is; sparse: small, safetensors (sparse-bitmask)."
        ),
    ] = "dense",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be pruned, and write nothing.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of --method random.")
    ] = 0,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Where the state_dict lies in nested ones: model.ema"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prune a saved checkpoint; its model's code is not needed.

    Weights of linear, convolution, recurrent and attention layers are pruned.

    Norms, embeddings and biases never are. What was taken and left is listed with the reason.
    """
    if not dry_run and out is None and not in_place:
        raise UserError("expected an output, got none; try -o OUT, --in-place or --dry-run")
    if amount is not None and count is not None:
        raise UserError("expected --amount or --count, got both; try one of them")
    wanted = count if amount is None else _number(amount, method)
    if dry_run:
        out, in_place = None, False
    elif out is not None and not in_place:
        out, in_place = _output(checkpoint, out, force)
    # Before it is replaced, where it is.
    size = _bytes(checkpoint) if checkpoint.exists() else 0
    with user_errors(), warnings.catch_warnings():
        from sparseinfer.checkpoints.prune import Recipe, prune_checkpoint

        # They are among the result's, and shown as it is.
        warnings.simplefilter("ignore", UserWarning)
        recipe = Recipe(
            method=method,
            amount=wanted,
            scope=scope,
            structure=structure,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            seed=seed,
        )
        result = prune_checkpoint(
            checkpoint,
            recipe,
            out,
            in_place=in_place,
            format=format,
            key=key,
            progress=False if as_json else None,
        )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=1))
    else:
        _show(result, size)


def _output(checkpoint: Path, out: Path, force: bool) -> tuple[Path | None, bool]:
    """Where to write, and whether that is the input itself."""
    same = out.exists() and checkpoint.exists() and out.samefile(checkpoint)
    # Another name of the same file (a hard link) would not be what is written in its place.
    if same and force and os.path.realpath(out) == os.path.realpath(checkpoint):
        return None, True
    # The input itself, and folders with something in them, are refused by what writes them.
    if not same and not out.is_dir():
        check_output(out, force)
    elif out.is_dir() and checkpoint.is_file() and checkpoint.suffix != ".json":
        check_output(out, force)
    return out, False


def _number(text: str, method: str) -> float | int:
    """A fraction, a percentage or a count; a number that could be meant as either is refused."""
    percentage = text.endswith("%") and method != "threshold"
    try:
        value = float(text[:-1]) / 100 if percentage else float(text)
    except ValueError as error:
        tries = "0.01" if method == "threshold" else "0.9 or 90%"
        raise UserError(
            f"expected a number as --amount, got {text!r}; try --amount {tries}"
        ) from error
    if method == "threshold":
        return value
    if value == 0:
        raise UserError(f"expected an --amount that prunes something, got {text}; try 0.9 or 90%")
    if not percentage and text.strip().lstrip("+-").isdecimal():
        return _count(int(text))
    if not 0 < value < 1:
        tries = f"{value / 100:g} or {value:g}%" if 1 < value < 100 and not percentage else "0.9"
        raise UserError(
            f"expected an --amount between 0 and 1, or 0% and 100%, got {text}; try "
            f"--amount {tries}, or --count for a number of weights"
        )
    return value


def _count(whole: int) -> int:
    if whole < 0:
        raise UserError(
            f"expected an --amount above 0, got {whole}; try --amount 0.9, or --count 1000"
        )
    if whole < 100:
        raise UserError(
            f"expected a fraction or a percentage as --amount, got {whole}; try --amount "
            f"{whole / 100:g} or {whole}%, or --count {whole} for so many weights"
        )
    return whole


def _show(result: Pruned, size: int) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("tensor", overflow="fold", min_width=16)
    table.add_column("shape")
    table.add_column("zeros", justify="right")
    table.add_column("why", overflow="fold", min_width=12)
    for row in result.rows:
        table.add_row(
            fold(row.name),
            "x".join(map(str, row.shape)) or "scalar",
            f"{percent(row.zeros_before, row.elements)} -> {percent(row.zeros, row.elements)}"
            if row.pruned
            else "",
            f"{'pruned' if row.pruned else 'left'}: {fold(row.reason)}",
        )
    out = console()
    out.print(table)
    taken = [row for row in result.rows if row.pruned]
    zeros, elements = sum(row.zeros for row in taken), sum(row.elements for row in taken)
    out.print(
        f"{len(taken)} of {len(result.rows)} tensors pruned: {percent(zeros, elements)} of their "
        f"{elements:,} weights are zero.",
        highlight=False,
    )
    if taken and all(row.zeros == row.zeros_before for row in taken):
        out.print("Nothing was pruned: as many weights were zero before.", highlight=False)
    for text in result.warnings:
        out.print(f"warning: {fold(text)}", highlight=False)
    if result.output is None:
        out.print("Nothing was written.", highlight=False)
        return
    sizes = f"{size_text(size)} -> {size_text(_bytes(Path(result.output)))}"
    out.print(f"Written: {fold(result.output)} ({sizes}).", highlight=False)


def _bytes(path: Path) -> int:
    if path.name.endswith(".index.json"):
        path = path.parent
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
