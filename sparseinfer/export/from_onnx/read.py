"""ONNX models as they come: a file or one in memory, whole and validated before anything reads it.

Everything in a file is hostile until it was looked at. Tensors take the bytes that are there, and
those that lie in other files are read from inside the file's own folder alone.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["is_onnx", "read_onnx"]

MOST_FUNCTIONS = 512
MOST_CALLS = 2**16
"""Nodes of a model when its functions are put where they are called."""

FIELDS = {
    "FLOAT": "float_data", "COMPLEX64": "float_data", "DOUBLE": "double_data",
    "COMPLEX128": "double_data", "INT64": "int64_data", "UINT32": "uint64_data",
    "UINT64": "uint64_data",
}  # fmt: skip
"""Where a tensor keeps its elements, if not as raw bytes; those of other types: `int32_data`."""


def is_onnx(model: Any) -> bool:
    """Whether it is what `read_onnx` takes; onnx itself is not imported for that.

    Example:
        >>> is_onnx("model.onnx"), is_onnx("model.pt2")
        (True, False)
    """
    if isinstance(model, str | os.PathLike):
        return Path(model).suffix.lower() == ".onnx"
    kind = type(model)
    return kind.__name__ in ("ModelProto", "Model") and kind.__module__.startswith("onnx")


def read_onnx(source: Any) -> Any:
    """The `onnx.ModelProto` of a file, or of one or an `onnx_ir.Model` in memory, with all data.

    Raises:
        ImportError: onnx or onnx_ir is not installed.
        OSError: a file cannot be read.
        ValueError: it is no ONNX model, or a tensor has other bytes than its shape takes, or some
            outside the file's folder.
    """
    try:
        import onnx
        import onnx_ir
    except ImportError as error:
        raise ImportError(
            f"expected the packages that read ONNX, got none named {error.name}; try pip install "
            "'sparseinfer[onnx]'"
        ) from error
    folder = None
    if isinstance(source, str | os.PathLike):
        proto, folder = _parsed(onnx.ModelProto(), Path(source)), Path(source).resolve().parent
    elif isinstance(source, onnx_ir.Model):
        proto = onnx_ir.to_proto(onnx_ir.external_data.load_to_model(source.clone()))
    else:
        proto = source
    if not proto.HasField("graph"):
        raise ValueError(
            "expected an ONNX model with a graph, got none; try onnx.checker.check_model on it"
        )
    left = _External(folder)
    for tensor in _tensors(proto):
        _check_tensor(tensor, left)
    _check_functions(proto)
    return proto


def _parsed(proto: Any, path: Path) -> Any:
    from google.protobuf.message import DecodeError

    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path}: expected a file, got something else; try a .onnx file")
        content = file.read()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ValueError(
            f"{path}: expected an ONNX model, got a file that cannot be read as one; try "
            "onnx.checker.check_model on it"
        ) from error
    return proto


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    yield from _graphs_in(graph.node)


def _graphs_in(nodes: Any) -> Iterator[Any]:
    # Protobuf itself reads no more than a hundred of them within one another.
    for node in nodes:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(inner)


def _tensors(proto: Any) -> Iterator[Any]:
    graphs = list(_graphs(proto.graph))
    nodes = [graph.node for graph in graphs]
    for function in proto.functions:
        inner = list(_graphs_in(function.node))
        graphs += inner
        nodes += [function.node, *(graph.node for graph in inner)]
    for graph in graphs:
        if graph.sparse_initializer:
            raise ValueError(
                "expected dense initializers, got sparse ones; try a model whose weights are "
                "dense tensors: zeros in them are found"
            )
        yield from graph.initializer
    for attributes in (node.attribute for some in nodes for node in some):
        for attribute in attributes:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


class _External:
    """The files beside a model, and how many of their bytes tensors may still take."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.left: dict[Path, int] = {}

    def read(self, name: str, location: str, offset: int, length: int) -> bytes:
        """Bytes of a file inside the folder.

        Raises:
            ValueError: it lies elsewhere, has not so many bytes, or gave all of them before.
        """
        if self.folder is None:
            raise ValueError(
                f"expected a model that holds its tensors, got {name!r} in another file; try the "
                "path of the model"
            )
        path = Path(os.path.realpath(self.folder / location)) if "\0" not in location else None
        if path is None or not path.is_relative_to(self.folder) or Path(location).is_absolute():
            raise ValueError(
                f"expected the data of {name!r} inside the folder of the model, got "
                f"{location!r}; try to move it there"
            )
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or offset + length > found.st_size:
                raise ValueError(
                    f"expected {length} bytes of {name!r} at {offset} of {location!r}, got "
                    f"{found.st_size} in all; try to save the model again"
                )
            self.left[path] = self.left.get(path, found.st_size) - length
            if self.left[path] < 0:
                raise ValueError(
                    f"expected tensors with bytes of their own in {location!r}, got several that "
                    "share them; try to save the model again"
                )
            file.seek(offset)
            return file.read(length)


def _check_tensor(tensor: Any, external: _External) -> None:
    """Hold the bytes of a tensor against its shape; what lies in a file is taken into it."""
    import onnx_ir

    name = tensor.name
    try:
        kind = onnx_ir.DataType(tensor.data_type)
    except ValueError:
        kind = onnx_ir.DataType.UNDEFINED
    if kind == onnx_ir.DataType.UNDEFINED:
        raise ValueError(f"expected a known type of {name!r}, got number {tensor.data_type}")
    if any(size < 0 for size in tensor.dims):
        raise ValueError(f"expected sizes of {name!r} from 0, got {list(tensor.dims)}")
    count = math.prod(tensor.dims)
    if kind == onnx_ir.DataType.STRING:
        wanted, found = count, len(tensor.string_data)
    else:
        wanted = -(-count * kind.bitwidth // 8)
        if tensor.data_location == tensor.EXTERNAL:
            tensor.raw_data = _external_bytes(tensor, wanted, external)
            tensor.data_location = tensor.DEFAULT
            del tensor.external_data[:]
        if tensor.HasField("raw_data"):
            found = len(tensor.raw_data)
        else:
            found = len(getattr(tensor, FIELDS.get(kind.name, "int32_data")))
            wanted = wanted if kind.bitwidth < 8 else count
            wanted *= 2 if kind.name.startswith("COMPLEX") else 1
    if found != wanted:
        raise ValueError(
            f"expected {wanted} bytes or elements of {name!r} {list(tensor.dims)}, got {found}; "
            "try to save the model again"
        )


def _external_bytes(tensor: Any, wanted: int, external: _External) -> bytes:
    given = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, length = int(given.get("offset", 0)), int(given.get("length", wanted))
    except ValueError:
        offset, length = -1, 0
    if offset < 0 or length != wanted or not given.get("location"):
        raise ValueError(
            f"expected {wanted} bytes of {tensor.name!r} in a file beside the model, got {given}; "
            "try to save the model again"
        )
    return external.read(tensor.name, given["location"], offset, length)


def _check_functions(proto: Any) -> None:
    """Count the nodes that there are when every function was put where it is called."""
    bodies = {(own.domain, own.name): own.node for own in proto.functions}
    if len(bodies) > MOST_FUNCTIONS:
        raise ValueError(
            f"expected up to {MOST_FUNCTIONS} functions in a model, got {len(bodies)}; try "
            "onnx.inliner.inline_local_functions on it"
        )
    sizes: dict[tuple[str, str], int] = {}

    def size_of(nodes: Any, within: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = node.domain, node.op_type
            if key in within:
                raise ValueError(f"expected functions that end, got {key[1]!r}, which calls itself")
            if key in bodies and key not in sizes:
                sizes[key] = size_of(bodies[key], (*within, key))
            total += sizes.get(key, 1)
            total += sum(size_of(graph.node, within) for graph in _graphs_in([node]))
        if total > MOST_CALLS:
            raise ValueError(
                f"expected up to {MOST_CALLS} nodes in a model, got more by its functions; try "
                "a part of it"
            )
        return total

    size_of(proto.graph.node, ())
