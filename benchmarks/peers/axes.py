"""What a run varies beside the layers: type, type of x and y, structure of the zeros, sparsity."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import typer

from benchmarks.command import parse_names
from benchmarks.peers.catalogue import Target
from benchmarks.peers.narrow import IOS, STRUCTURES

WORDS = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}
"""The types as tables and plots say them."""


def parse_dtype(text: str) -> str:
    """Return the type that is multiplied.

    Raises:
        typer.BadParameter: there is no such type.
    """
    if text not in IOS:
        raise typer.BadParameter(f"expected one of {', '.join(IOS)}, got {text!r}")
    return text


def parse_ios(text: str, dtype: str) -> list[str]:
    """Return the types of x and y in a list such as ``uint8,float32``; ``all`` is every one.

    Raises:
        typer.BadParameter: an item is no type of x and y that ``dtype`` is measured with.
    """
    return _parse_some(text, IOS[dtype])


def parse_structures(text: str, dtype: str) -> list[str]:
    """Return the structures in a list such as ``unstructured,4x1``.

    ``all`` is every one, and nothing those that a type is measured with: random zeros alone in
    float32.

    Raises:
        typer.BadParameter: an item is no structure that is measured.
    """
    if not text:
        return list(STRUCTURES[:1] if dtype == "float32" else STRUCTURES)
    return _parse_some(text, STRUCTURES)


def _parse_some(text: str, known: Sequence[str]) -> list[str]:
    names = parse_names(text, known)
    return [name for name in known if name in names]


def vary(
    targets: Sequence[Target], dtype: str, ios: Sequence[str], structures: Sequence[str]
) -> list[Target]:
    """Return every layer in a type, with every type of x and y and every structure."""
    return [
        dataclasses.replace(target, dtype=dtype, io=io, structure=structure)
        for io, target, structure in itertools.product(ios, targets, structures)
    ]


def cells(targets: Sequence[Target], sparsities: Sequence[float]) -> list[tuple[Target, float]]:
    """Return what is measured: without zeros, a structure is none and is left out."""
    return [
        (target, sparsity)
        for target, sparsity in itertools.product(targets, sparsities)
        if sparsity > 0 or target.structure == STRUCTURES[0]
    ]
