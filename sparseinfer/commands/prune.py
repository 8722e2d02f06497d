"""`sparseinfer prune`: a checkpoint in, a pruned one out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from sparseinfer.commands.output import UserError, console, size_text, user_errors

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
            help="Fraction such as 0.9, or count without a point; the threshold for threshold. "
            "Zeros already there count.",
        ),
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
    if dry_run:
        out, in_place = None, False
    # Before it is replaced, where it is.
    size = _bytes(checkpoint) if checkpoint.exists() else 0
    with user_errors(), warnings.catch_warnings():
        from sparseinfer.checkpoints.prune import Recipe, prune_checkpoint

        # They are among the result's, and shown as it is.
        warnings.simplefilter("ignore", UserWarning)
        recipe = Recipe(
            method=method,
            amount=_number(amount),
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


def _number(text: str | None) -> float | int | None:
    if text is None:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise UserError(f"expected a number as --amount, got {text!r}; try --amount 0.9")


def _show(result: Pruned, size: int) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("tensor", overflow="fold", min_width=16)
    table.add_column("shape")
    table.add_column("zeros", justify="right")
    table.add_column("why", overflow="fold", min_width=12)
    for row in result.rows:
        before = row.zeros_before / max(1, row.elements)
        table.add_row(
            escape(row.name),
            "x".join(map(str, row.shape)) or "scalar",
            f"{before:.1%} -> {row.sparsity:.1%}" if row.pruned else "",
            f"{'pruned' if row.pruned else 'left'}: {escape(row.reason)}",
        )
    out = console()
    out.print(table)
    taken = [row for row in result.rows if row.pruned]
    out.print(
        f"{len(taken)} of {len(result.rows)} tensors pruned: {result.sparsity:.1%} of their "
        f"{sum(row.elements for row in taken):,} weights are zero.",
        highlight=False,
    )
    for text in result.warnings:
        out.print(f"warning: {escape(text)}", highlight=False)
    if result.output is None:
        out.print("Nothing was written.", highlight=False)
        return
    sizes = f"{size_text(size)} -> {size_text(_bytes(Path(result.output)))}"
    out.print(f"Written: {escape(result.output)} ({sizes}).", highlight=False)


def _bytes(path: Path) -> int:
    if path.name.endswith(".index.json"):
        path = path.parent
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
