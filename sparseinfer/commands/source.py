"""What `sparseinfer export` and `bench` compile: a SOURCE on the command line, and its examples."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseinfer.commands.output import UserError, of_file

if TYPE_CHECKING:
    import torch

__all__ = [
    "example_of", "examples_of", "load_numpy", "load_source", "read_array", "tensor_of",
]  # fmt: skip

TYPES = {"float32": "numpy.float32", "int64": "numpy.int64", "bool": "bool"}
"""What inputs may be, and what numpy calls these types."""

SOURCES = "a .pt2 or .onnx file, or package.module:factory"


def load_source(source: str, trust: bool) -> tuple[Any, Any]:
    """A model and the example inputs that come with it; None where none do, as in .onnx files.

    Raises:
        UserError: it is no source, or cannot be loaded.
    """
    if source.endswith(".onnx"):
        return _onnx(source), None
    if source.endswith(".pt2"):
        from sparseinfer.export.program import load_program

        try:
            program = load_program(source, trust=trust)
        except ValueError as error:
            raise UserError(str(error)) from error
        except OSError as error:
            raise of_file(error) from error
        return program, program.example_inputs
    module, colon, name = source.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise UserError(
            f"expected {SOURCES}, got {source!r}; try model.pt2, or my_package.models:make"
        )
    return _made(source, module, name)


def _onnx(source: str) -> Any:
    from sparseinfer.export.from_onnx import read_onnx

    try:
        return read_onnx(source)
    except (ValueError, ImportError) as error:
        text = str(error)
        raise UserError(text if text.startswith(source) else f"{source}: {text}") from error
    except OSError as error:
        raise of_file(error) from error


def _made(source: str, module: str, name: str) -> tuple[Any, Any]:
    """Import and call a factory: from the working folder too, as `python -m` does it."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        made = found()
    # Of whatever the user's own code does.
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{source}: expected a function that makes a model, got {type(error).__name__}: "
            f"{first}; try python -c 'import {module}; {module}.{name}()'"
        ) from error
    import torch

    model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, torch.nn.Module):
        raise UserError(
            f"{source}: expected a function that gives an nn.Module, or one with its example "
            f"inputs, got {type(model).__name__}; try return model.eval()"
        )
    return model.eval(), example


def examples_of(texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Tensors of the shapes or the .npy files that are named; `1x128:int64` is one of ids.

    Raises:
        UserError: one is neither.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    found = []
    for text in texts:
        if text.endswith(".npy"):
            found.append(read_array(Path(text)))
            continue
        shape, _, kind = text.partition(":")
        parts = shape.split("x")
        sizes = all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts)
        if not sizes or kind not in ("", *TYPES):
            raise UserError(
                f"expected a shape or a .npy file as --example, got {text!r}; try 1x3x224x224, or "
                "1x128:int64"
            )
        try:
            found.append(example_of([int(part) for part in parts], kind or "float32", generator))
        except RuntimeError as error:
            raise UserError(f"--example {text}: too large for this machine; try less") from error
    return tuple(found)


def example_of(shape: Sequence[int], kind: str, generator: torch.Generator) -> torch.Tensor:
    """An input of a type by its name: random numbers, ones for ids and masks of them, or False."""
    import torch

    if kind == "float32":
        return torch.randn(tuple(shape), generator=generator)
    return torch.full(tuple(shape), kind == "int64", dtype=getattr(torch, kind))


def read_array(path: Path, kinds: Sequence[str] = tuple(TYPES)) -> torch.Tensor:
    """A tensor of a .npy file, of one of these types; nothing in it is unpickled.

    Raises:
        UserError: it is something else, or cannot be read.
    """
    import numpy as np

    array = load_numpy(path, "an array of numpy.save", "numpy.save(path, x)")
    if not isinstance(array, np.ndarray):
        raise UserError(
            f"{path}: expected an array of {' or '.join(kinds)}, got several arrays; try "
            "numpy.save(path, x)"
        )
    return tensor_of(str(path), array, kinds)


def load_numpy(path: Path, expected: str, remedy: str) -> Any:
    """What numpy.load gives for a file, with the arrays of a .npz file read, and no pickle.

    Raises:
        UserError: it cannot be read.
    """
    import zipfile
    import zlib

    import numpy as np

    try:
        content = path.read_bytes()
    except OSError as error:
        raise of_file(error) from error
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
        return found if isinstance(found, np.ndarray) else {name: found[name] for name in found}
    # Headers of others are Python literals, which numpy parses; archives are those of zipfile.
    except (
        ValueError, EOFError, SyntaxError, OverflowError, RecursionError, MemoryError, KeyError,
        NotImplementedError, RuntimeError, OSError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise UserError(
            f"{path}: expected {expected}, got a file that cannot be read as one; try {remedy}"
        ) from error


def tensor_of(place: str, array: Any, kinds: Sequence[str] = tuple(TYPES)) -> torch.Tensor:
    """The tensor of an array of one of these types.

    Raises:
        UserError: it has another type, or a member of an archive is no array.
    """
    import numpy as np
    import torch

    if not isinstance(array, np.ndarray) or str(array.dtype) not in kinds:
        kind = array.dtype if isinstance(array, np.ndarray) else "other bytes"
        raise UserError(
            f"{place}: expected an array of {' or '.join(kinds)}, got {kind}; try "
            f"x.astype({TYPES[kinds[0]]})"
        )
    return torch.from_numpy(array.copy(order="C"))
