"""A .sinf file on the command line: how it is loaded, its inputs, and what inspect tells of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.table import Table

from sparseinfer.commands.output import UserError, console, fold, of_file, percent, size_text
from sparseinfer.commands.source import read_array

if TYPE_CHECKING:
    from sparseinfer.export.engine import Engine
    from sparseinfer.export.facts import EngineFacts, TensorFacts

__all__ = ["bound_inputs", "inspect_engine", "is_engine_file", "open_engine"]

MAGIC = b"SINFMODL"


def is_engine_file(path: Path) -> bool:
    """Whether a file begins as one, or is named as one."""
    if path.suffix == ".sinf":
        return True
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def open_engine(path: Path, threads: int | None = None) -> Engine:
    """Load a file.

    Raises:
        UserError: it is none, or is damaged.
    """
    from sparseinfer.export.engine import load_engine

    try:
        return load_engine(path, threads=threads)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise of_file(error) from error


def bound_inputs(engine: Engine, given: Sequence[str]) -> dict[str, Any]:
    """Arguments of a call, of `x.npy` in order and `name=x.npy`.

    Raises:
        UserError: there are too many or too few, or one is not what the engine takes.
    """
    names = [name for name, _ in engine.inputs]
    kinds = dict(zip(names, (tensor.dtype for tensor in engine.facts().inputs), strict=True))
    found: dict[str, Any] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            left = [own for own in names if own not in found]
            name, path = left[0] if left else "", text
        if name not in names or name in found:
            raise UserError(f"expected {_told(engine)}, got --input {text}; try each of them once")
        found[name] = read_array(Path(path), [kinds[name]])
        shape = dict(engine.inputs)[name]
        got = tuple(found[name].shape)
        if not engine.takes(name, got):
            raise UserError(
                f"{path}: expected {_shape(shape)} for {name}, got {_shape(got)}; try an "
                "array of that shape, or exporting the model for this one"
            )
    lacking = [name for name in names if name not in found]
    if lacking:
        raise UserError(
            f"expected {_told(engine)}, got none for {', '.join(lacking)}; try --input x.npy"
        )
    return found | engine.fixed


def _told(engine: Engine) -> str:
    shapes = (f"{name} ({'x'.join(map(str, shape))})" for name, shape in engine.inputs)
    return f"{len(engine.inputs)} inputs, {', '.join(shapes)}"


def inspect_engine(path: Path, as_json: bool, operators: bool = False) -> None:
    """Print what a file holds, or its operators alone."""
    facts = open_engine(path, 1).facts()
    if operators:
        typer.echo(";".join(facts.operators))
    elif as_json:
        typer.echo(json.dumps({"file": str(path), **facts.to_dict()}, indent=1))
    else:
        _show(facts)


def _show(facts: EngineFacts) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("node", overflow="fold")
    table.add_column("operator", overflow="fold")
    table.add_column("output", overflow="fold")
    table.add_column("weight", overflow="fold")
    table.add_column("zeros", overflow="fold", justify="right")
    table.add_column("bytes", overflow="fold", justify="right")
    for node in facts.nodes:
        if not node.runs:
            continue
        constants = [
            facts.tensors[k]
            for k in node.operands
            if k is not None and facts.tensors[k].kind == "constant"
        ]
        weight = constants[0] if constants else None
        shape = "" if weight is None else f"{weight.format} {_shape(weight.shape)} {weight.dtype}"
        table.add_row(
            fold(node.name or "(model)"),
            node.op if node.activation == "none" else f"{node.op} + {node.activation}",
            _shape(facts.tensors[node.output].shape),
            shape.strip(),
            "" if node.sparsity is None else f"{node.sparsity:.1%}",
            size_text(sum(tensor.bytes for tensor in constants)) if constants else "",
        )
    out = console()
    out.print(table)
    out.print()
    totals = facts.totals
    ends = "; ".join(
        f"{word} {', '.join(map(_told_tensor, tensors))}"
        for word, tensors in (("inputs", facts.inputs), ("outputs", facts.outputs))
    )
    batches = f" Any batch up to {facts.most_batch:,}." if facts.most_batch else ""
    zeros = percent(totals["weights"] - totals["nonzeros"], totals["weights"])
    lines = [
        f"Model file of version {facts.version}: {ends}.{batches}",
        f"{totals['nodes']} nodes that run, {len(facts.tensors)} tensors, {totals['weights']:,} "
        f"weights, {zeros} of them zero; {totals['multiply_adds']:,} multiply-adds a call.",
        f"File {facts.file_bytes:,} bytes: "
        + ", ".join(f"{size:,} of {kind}" for kind, size in facts.bytes.items() if size) + ".",
        f"A caller's context takes {facts.context_bytes:,} bytes beside the kernels' scratch, "
        f"{facts.arena_bytes:,} of them for intermediate results.",
    ]  # fmt: skip
    for line in lines:
        out.print(line, highlight=False)


def _told_tensor(tensor: TensorFacts) -> str:
    return f"{fold(tensor.name)} {_shape(tensor.shape)} {tensor.dtype}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
