"""A batch that may vary: how it is asked for, and whether a model leaves it in dimension 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from sparseinfer.export.any_batch import allow_any_batch
from sparseinfer.export.graph import Graph, Value
from sparseinfer.export.signature import Signature

__all__ = ["MOST_BATCH", "at_batch", "batched_inputs", "check_batches", "mark_batch"]

MOST_BATCH = 2**31 - 1
"""That a file may tell; the elements of tensors bound it before."""


def batched_inputs(dynamic: Any, given: Mapping[str, Any]) -> dict[str, int]:
    """The names of the inputs whose dimension 0 is the batch, with the largest that it may be.

    `dynamic` is None, `"batch"` for all tensors, or by names what `torch.export.export` takes as
    dynamic_shapes: `{"x": {0: "batch"}}` or `{"x": {0: Dim("batch", max=64)}}`.

    Raises:
        TypeError: it is something else.
        ValueError: it names an input that is none, another dimension than 0, or two batches; or the
            inputs of the example have no batch, not the same, or a larger one than the largest.

    Example:
        >>> batched_inputs({"x": {0: Dim("batch", max=64)}}, {"x": torch.zeros(2, 3)})
        {'x': 64}
    """
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    if dynamic is None:
        return {}
    if dynamic == "batch":
        dynamic = {name: {0: "batch"} for name in tensors}
    if not isinstance(dynamic, Mapping):
        raise TypeError(
            f"expected dynamic as 'batch', or {{'x': {{0: 'batch'}}}}, got {dynamic!r}; try "
            "dynamic='batch'"
        )
    found: dict[str, int] = {}
    symbols: set[str] = set()
    for name, dims in dynamic.items():
        if name not in tensors:
            raise ValueError(
                f"expected dynamic of {', '.join(tensors)}, got {name!r}; try the names of the "
                "model's own tensors"
            )
        for dim, size in _dims(name, dims):
            if dim != 0:
                raise ValueError(
                    f"expected a batch in dimension 0, got dimension {dim} of {name}; try an "
                    "engine for each size of the others"
                )
            symbol, found[name] = _size(size)
            symbols.add(symbol)
    if not found:
        raise ValueError("expected dynamic of an input, got none; try dynamic='batch'")
    if len(symbols) > 1:
        raise ValueError(
            f"expected one batch, got {', '.join(sorted(symbols))}; try the same name for all"
        )
    _check_example(found, tensors)
    most = min(found.values())
    return dict.fromkeys(found, most)


def _dims(name: str, dims: Any) -> list[tuple[int, Any]]:
    if dims is None:
        return []
    if isinstance(dims, Mapping):
        pairs = list(dims.items())
    elif isinstance(dims, tuple | list):
        pairs = list(enumerate(dims))
    else:
        raise TypeError(f"expected {{0: 'batch'}} for {name}, got {dims!r}; try that")
    return [(dim, size) for dim, size in pairs if size is not None]


def _size(size: Any) -> tuple[str, int]:
    """The name of a dimension, and the largest that it may be."""
    if isinstance(size, str):
        return size, MOST_BATCH
    if size is Dim.DYNAMIC or size is Dim.AUTO:
        return "batch", MOST_BATCH
    if isinstance(size, type(Dim("batch"))):
        # torch's own largest is no int where none was given.
        most = size.max if isinstance(size.max, int) else MOST_BATCH
        return size.__name__, min(most, MOST_BATCH)
    raise TypeError(f"expected 'batch' or torch.export.Dim('batch', max=64), got {size!r}; try it")


def _check_example(found: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
    batches = {name: len(tensors[name]) if tensors[name].dim() else 0 for name in found}
    if len(set(batches.values())) > 1 or 0 in batches.values():
        told = ", ".join(f"{batch} of {name}" for name, batch in batches.items())
        raise ValueError(
            f"expected one batch as dimension 0 of the example, got {told}; try to name those "
            "inputs alone that have it, as in dynamic={'x': {0: 'batch'}}"
        )
    batch, most = next(iter(batches.values())), min(found.values())
    if batch > most:
        raise ValueError(
            f"expected an example of a batch up to {most}, got {batch}; try a larger Dim"
        )


def mark_batch(
    graph: Graph,
    signature: Signature,
    batched: Mapping[str, int],
    graph_at: Callable[[int], Graph],
) -> list[int]:
    """Mark the inputs of a graph whose batch may vary, where the model allows it.

    `graph` is the model's at the batch of its example, and not optimised yet; `graph_at` gives that
    of another. Gives the other batches at which it was looked at: 1, where models differ most, and
    one more. Dimensions that grow with the batch from one to another do so throughout.

    Raises:
        ValueError: the model computes something else at another batch.
    """
    inputs = zip(signature.tensors, graph.inputs, strict=True)
    marked = [value for name, value in inputs if name in batched]
    if not marked:
        return []
    own, most = marked[0].shape[0], min(batched.values())
    batches = sorted({1, min(own + 1, most)} - {own})
    allow_any_batch(graph, marked)
    places = [graph.inputs.index(value) for value in marked]
    for batch in batches:
        other = _graph_at(graph_at, batch)
        allow_any_batch(other, [other.inputs[place] for place in places])
        check_batches(graph, other, marked, batch)
    for value in marked:
        value.most_batch = most
    return batches


def at_batch(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    parameters: Sequence[str],
    batched: Mapping[str, int],
    batch: int,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with another batch, of the example's own samples.

    Example:
        >>> at_batch((), {"x": torch.ones(2, 3)}, ["x"], {"x": 9}, 5)[1]["x"].shape
        torch.Size([5, 3])
    """

    def resized(name: str, value: Any) -> Any:
        if name not in batched:
            return value
        return value[[at % len(value) for at in range(batch)]]

    # The positional arguments come first among the names.
    named = zip(parameters, args, strict=False)
    return (
        tuple(resized(name, value) for name, value in named),
        {name: resized(name, value) for name, value in kwargs.items()},
    )


def _graph_at(graph_at: Callable[[int], Graph], batch: int) -> Graph:
    try:
        return graph_at(batch)
    # Whatever a model raises that takes no other batch.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ValueError(
            f"expected a model that runs at every batch, got one that does not at {batch} "
            f"({type(error).__name__}: {reason}); try dynamic=None, an engine for each batch"
        ) from error


def check_batches(own: Graph, other: Graph, batched: Sequence[Value], batch: int) -> None:
    """Check that two graphs of one model, at its own batch and at another, are one but for that.

    `batched` are the inputs of `own` that vary. All that is computed from them has the batch in
    dimension 0, alone or times a number that stays: then a file holds for every batch.

    Raises:
        ValueError: they are not; it lists every operation that differs, with its module.

    Example:
        >>> from sparseinfer.export.graph import Node
        >>> def graph(batch):
        ...     x, y = Value("x", (batch, 3)), Value("y", (batch, 3))
        ...     return Graph([x], [Node("add", "", [x, x], y)], [y])
        >>> own = graph(2)
        >>> check_batches(own, graph(3), own.inputs, 3)
    """
    lines = list(_differences(own, other, batched, batch))
    if lines:
        raise ValueError(
            "expected a model that computes the same at every batch and keeps it in dimension 0, "
            f"got one that does not at batch {batch}; try dynamic=None, an engine for each batch:"
            "\n  " + "\n  ".join(lines)
        )


def _differences(own: Graph, other: Graph, batched: Sequence[Value], batch: int) -> Iterator[str]:
    if len(own.nodes) != len(other.nodes):
        yield f"{len(own.nodes)} operations at the example's batch, {len(other.nodes)} at {batch}"
        return
    pairs: dict[Value | None, Value] = dict(zip(own.inputs, other.inputs, strict=True))
    varies: set[Value | None] = set(batched)
    base = batched[0].shape[0]
    for node, twin in zip(own.nodes, other.nodes, strict=True):
        pairs[node.output] = twin.output
        told = f"{node.op} in {node.name!r}"
        kinds = [(each.op, each.activation, len(each.inputs)) for each in (node, twin)]
        if kinds[0] != kinds[1] or node.attributes != twin.attributes:
            yield f"{told} is {twin} there"
            continue
        for x, z in zip(node.inputs, twin.inputs, strict=True):
            if pairs.get(x) is not z and not _is_same_constant(x, z):
                yield f"{told} reads {x}, and {z} there"
        shape = node.output.shape
        grows = any(x in varies for x in node.inputs)
        if grows:
            varies.add(node.output)
        fits = not grows or (shape and shape[0] % base == 0)
        expected = (shape[0] // base * batch, *shape[1:]) if grows and shape else shape
        if not fits or twin.output.shape != expected:
            yield f"{told} gives {list(shape)}, and {list(twin.output.shape)} there"
    if [pairs.get(value) for value in own.outputs] != other.outputs:
        yield "its outputs are others there"


def _is_same_constant(x: Value | None, z: Value | None) -> bool:
    if x is None or z is None or x.constant is None or z.constant is None:
        return x is z is None
    a, b = x.constant, z.constant
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # NaN is itself.
    return a.data_ptr() == b.data_ptr() or torch.equal(
        *(each.contiguous().reshape(-1).view(torch.uint8) for each in (a, b))
    )
