"""What a node becomes in C: a call, the constant that it names, and the pieces of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Emitted", "Fields", "function_of", "node_call", "struct_text"]

Fields = Mapping[str, Any]


@dataclass
class Emitted:
    """What a node becomes; `constant` is empty where it has none, `scratch` are bytes."""

    call: str
    pieces: list[str]
    constant: str = ""
    scratch: int = 0


def struct_text(kind: str, name: str, fields: Fields) -> str:
    """A constant of a struct.

    Example:
        >>> struct_text("span", "a", {"first": 1, "pair": "{2, 3}"})
        'static const struct span a = {.first = 1, .pair = {2, 3}};'
    """
    head = f"static const struct {kind} {name} = "
    if not any(isinstance(value, Mapping) for value in fields.values()):
        return f"{head}{_fields_text(fields)};"
    lines = (_fields_text({field: value})[1:-1] for field, value in fields.items())
    return f"{head}{{\n    " + ",\n    ".join(lines) + "};"


def _fields_text(fields: Fields) -> str:
    texts = (
        f".{name} = {_fields_text(value) if isinstance(value, Mapping) else value}"
        for name, value in fields.items()
    )
    return "{" + ", ".join(texts) + "}"


def node_call(kind: str, name: str, fields: Fields, given: str, pieces: list[str]) -> Emitted:
    """A call of a piece with a constant of its struct, and with further arguments."""
    constant = struct_text(kind, name, fields)
    return Emitted(f"{kind}(&{name}, {given});", [f"{kind}.h", *pieces], constant)


def function_of(activation: str) -> tuple[str, list[str]]:
    """The function of an activation, NULL for none, and its piece."""
    if activation == "none":
        return "0", []
    return f"act_{activation}", [f"activations/{activation}.h"]
