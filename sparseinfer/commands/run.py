"""`sparseinfer run`: a compiled network on arrays."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparseinfer.commands.engine_file import bound_inputs, open_engine
from sparseinfer.commands.output import UserError, check_output, console, fold, of_file

if TYPE_CHECKING:
    from torch import Tensor

    from sparseinfer.export.engine import Engine

__all__ = ["run"]

EPILOG = (
    "Examples:\n\nsparseinfer run model.sinf --input x.npy --top-k 5\n\n"
    "sparseinfer run model.sinf --input x=a.npy --input mask=b.npy -o y.npz\n\n"
    "sparseinfer run model.sinf --selftest"
)


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .sinf file.")],
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="A .npy file of the input's type; once for each, in order, or as name=FILE.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="OUT", help="A .npy file, or .npz where there are several."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, metavar="K", help="The K largest of each last row."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, metavar="N", help="Threads. (default: torch's number)"),
    ] = None,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Run the inputs in the file instead, and compare.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a compiled network once, and tell or write what it gives."""
    engine = open_engine(model, threads)
    if selftest:
        try:
            worst = engine.selftest()
        except RuntimeError as error:
            raise UserError(f"{model}: {error}") from error
        if as_json:
            typer.echo(json.dumps({"passed": True, "worst": worst}))
        else:
            console().print(
                f"Passed: outputs differ by at most {worst:.2g} of what is allowed.",
                highlight=False,
            )
        return
    arguments = bound_inputs(engine, given or [])
    if out is not None:
        check_output(out, force)
    outputs = outputs_of(engine, arguments)
    if out is not None:
        _write(out, outputs)
    if as_json:
        typer.echo(json.dumps({"outputs": {n: _data(y, top_k) for n, y in outputs.items()}}))
        return
    for name, tensor in outputs.items():
        _show(name, tensor, top_k)
    if out is not None:
        console().print(f"Written: {fold(str(out))}.", highlight=False)


def outputs_of(engine: Engine, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """What a call gives, by name.

    Raises:
        UserError: inputs hold ids that the model has not, or a mask of other numbers.
    """
    try:
        return named_outputs(engine(**arguments))
    except ValueError as error:
        raise UserError(str(error)) from error


def named_outputs(outputs: Any, path: str = "") -> dict[str, Tensor]:
    """Tensors by where they stand in what a model gives: `output`, `1`, or `logits`.

    Example:
        >>> import torch
        >>> list(named_outputs({"y": [torch.zeros(1), None]})), list(named_outputs(torch.zeros(1)))
        (['y.0'], ['output'])
    """
    if outputs is None:
        return {}
    if isinstance(outputs, dict):
        parts = outputs.items()
    elif isinstance(outputs, tuple | list):
        parts = {str(place): part for place, part in enumerate(outputs)}.items()
    else:
        return {path or "output": outputs}
    found: dict[str, Tensor] = {}
    for name, part in parts:
        found |= named_outputs(part, f"{path}.{name}" if path else name)
    return found


def _write(path: Path, outputs: dict[str, Tensor]) -> None:
    import numpy as np

    from sparseinfer.files import write_bytes

    stream = io.BytesIO()
    if path.suffix == ".npz":
        # As numpy.savez, which takes no name that is an argument of its own.
        with zipfile.ZipFile(stream, "w") as archive:
            for name, tensor in outputs.items():
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, tensor.numpy(), allow_pickle=False)
    elif len(outputs) == 1 and path.suffix == ".npy":
        np.save(stream, next(iter(outputs.values())).numpy(), allow_pickle=False)
    else:
        kind = ".npz" if len(outputs) > 1 else ".npy or .npz"
        raise UserError(
            f"{path}: expected the name of a {kind} file for {len(outputs)} outputs, got "
            f"{path.suffix or 'none'}; try {path.with_suffix('.npz')}"
        )
    try:
        write_bytes(path, stream.getvalue())
    except OSError as error:
        raise of_file(error) from error


def _top(tensor: Tensor, top_k: int) -> tuple[list[list[int]], list[list[float]]]:
    """Places and values of the largest of each row."""
    rows = tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
    values, places = rows.topk(min(top_k, rows.shape[1]), dim=1)
    return places.tolist(), values.tolist()


def _data(tensor: Tensor, top_k: int | None) -> dict[str, Any]:
    data: dict[str, Any] = {"shape": list(tensor.shape)}
    if top_k is not None:
        data["top"], data["values"] = _top(tensor, top_k)
    return data


def _show(name: str, tensor: Tensor, top_k: int | None) -> None:
    out = console()
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    out.print(
        f"{fold(name)}: {shape}, from {tensor.min():.4g} to {tensor.max():.4g}, mean "
        f"{tensor.mean():.4g}",
        highlight=False,
    )
    if top_k is None:
        return
    for row, (places, values) in enumerate(zip(*_top(tensor, top_k), strict=True)):
        found = ", ".join(f"{k}: {v:.4g}" for k, v in zip(places, values, strict=True))
        out.print(f"  row {row}: {found}", highlight=False)
