"""Exported programs (`.pt2`) as models: read with nothing in them run that was not asked for."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from sparseinfer.switches import logging_at

__all__ = ["drop_assertions", "load_program", "module_of"]

OPERATOR = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed|sparseinfer)\.\w+\.\w+")

MOST_BYTES = 2**33
"""Of an archive: as many are read before anything of it is looked at."""

FOLDERS = ("models/", "data/weights/", "data/constants/", "data/sample_inputs/")
"""What a program is read from, beside what tells the version and the byte order."""

PLAIN = (
    "archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id",
    ".format_version", ".storage_alignment",
)  # fmt: skip


def load_program(path: str | os.PathLike[str], *, trust: bool = False) -> ExportedProgram:
    """Read what `torch.export.save` wrote.

    Unless it is trusted, an archive is refused that holds more than a program of torch's operators
    with plain tensors: pickled objects, compiled libraries, functions of other names, and
    expressions in its sizes, which torch would evaluate as Python while it reads.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such archive, or holds what is not trusted.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "model.pt2")
        >>> torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(2),)), path)
        >>> load_program(path).example_inputs
        ((tensor([0., 0.]),), {})
    """
    size = Path(path).stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path}: expected at most {MOST_BYTES:,} bytes, got {size:,}; try a part")
    content = Path(path).read_bytes()
    try:
        if not trust:
            _check(content)
        with _silent():
            return torch.export.load(io.BytesIO(content))
    except _Untrusted as error:
        raise ValueError(
            f"{path}: expected a program of torch's operators and plain tensors, got {error}; "
            "try exporting the model anew, or trust=True (--trust) where nothing in it can do harm"
        ) from None
    # Of whatever a damaged archive makes the readers of zip, JSON and torch meet.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ValueError(
            f"{path}: expected a file that torch.export.save wrote, got one that cannot be read "
            f"({type(error).__name__}: {reason}); try saving it again with this version of torch"
        ) from None


def module_of(program: ExportedProgram) -> nn.Module:
    """A module that runs a program. Its mode is the program's own, which was fixed by the export.

    Example:
        >>> module = module_of(torch.export.export(nn.ReLU(), (torch.zeros(2),)))
        >>> module(torch.tensor([-1.0, 1.0]))
        tensor([0., 1.])
    """
    module = program.module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    drop_assertions(module)
    for part in module.modules():
        part.training = False
    return module


def drop_assertions(module: torch.fx.GraphModule) -> None:
    """Take out of a graph that tensors have the types of the export: it runs in float64 as well.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> drop_assertions(torch.export.export(model, (torch.zeros(2),)).graph_module)
    """
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    module.recompile()


@contextmanager
def _silent() -> Iterator[None]:
    """Keep torch from printing a traceback beside the error that it raises, and its warnings."""
    with logging_at(logging.CRITICAL, "torch.export"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Untrusted(Exception):
    """What an archive holds that is not trusted."""


def _check(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for info in archive.infolist():
            name = info.filename.partition("/")[2]
            if info.compress_type != zipfile.ZIP_STORED:
                raise _Untrusted(f"{info.filename!r}, which is compressed")
            if not name.startswith(FOLDERS) and name not in PLAIN:
                raise _Untrusted(repr(info.filename))
            if name.startswith("data/sample_inputs/"):
                _check_tensors(info.filename, archive.read(info))
            elif name.endswith("_config.json"):
                _check_config(info.filename, json.loads(archive.read(info)))
            elif name.startswith("models/"):
                _check_model(info.filename, json.loads(archive.read(info)))


def _check_tensors(name: str, content: bytes) -> None:
    """Torch would read what it cannot read so as a pickle of any objects."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        raise _Untrusted(f"objects in {name!r} that are no tensors") from None


def _check_config(name: str, config: Any) -> None:
    for key, value in _items(config):
        if key == "use_pickle" and value is not False:
            raise _Untrusted(f"pickled objects in {name!r}")
        if key == "path_name" and not str(value).startswith(("weight_", "tensor_")):
            raise _Untrusted(f"{str(value)[:60]!r} in {name!r}")


def _check_model(name: str, model: Any) -> None:
    for key, value in _items(model):
        if key in ("as_expr", "expr_str") and value is not None:
            raise _Untrusted(f"sizes that are expressions in {name!r}")
        if key == "guards_code" and value:
            raise _Untrusted(f"code of guards in {name!r}")
        if key == "target" and isinstance(value, str) and not _is_operator(value):
            raise _Untrusted(f"the function {value[:60]!r} in {name!r}")


def _is_operator(target: str) -> bool:
    """Whether a node's target, or what a parameter is called, names no function but an operator."""
    if not target.startswith(("torch", "_operator", "math", "#")):
        return True
    return target == "_operator.getitem" or OPERATOR.fullmatch(target) is not None


def _items(data: Any) -> Iterator[tuple[str, Any]]:
    """All keys of JSON, and their values, however deep."""
    left = [data]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield from part.items()
            left += part.values()
        elif isinstance(part, list):
            left += part
