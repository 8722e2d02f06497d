"""Results as JSON: dataclasses of plain data to text and back, under the version of their format.

What is read is checked against the types of the fields, so a file of something else is refused and
says where it differs.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["from_data", "parse_file", "rounded", "to_text"]

_Data = TypeVar("_Data")

DIGITS = 5
"""Significant digits of a measured figure: more is noise."""


def rounded(value: Any) -> Any:
    """Plain data with its floats cut to `DIGITS` significant digits, and tuples as lists.

    Example:
        >>> rounded({"ms": (0.123456789, 3)})
        {'ms': [0.12346, 3]}
    """
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def to_text(data: Mapping[str, Any], *, rows: bool = False, finite: bool = False) -> str:
    """The text of a file of plain data.

    `rows`: every item of a list on a line of its own, so that a diff shows the rows that moved.
    `finite`: refuse NaN and Inf, which not every reader of JSON knows.

    Raises:
        ValueError: there is a number that is refused.

    Example:
        >>> print(to_text({"schema": 1, "rows": [{"n": 1}, {"n": 2}]}, rows=True), end="")
        {
          "schema": 1,
          "rows": [
            {"n": 1},
            {"n": 2}
          ]
        }
    """
    if not rows:
        return json.dumps(data, indent=1, allow_nan=not finite) + "\n"
    parts = []
    for key, value in data.items():
        if isinstance(value, list) and value:
            lines = ",\n".join("    " + json.dumps(item, allow_nan=not finite) for item in value)
            body = f"[\n{lines}\n  ]"
        else:
            body = json.dumps(value, indent=2, allow_nan=not finite).replace("\n", "\n  ")
        parts.append(f"  {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def parse_file(text: str, key: str, version: int) -> dict[str, Any]:
    """The data in the text of a file that names its version under `key`, which is left out.

    Raises:
        ValueError: the text is not JSON, nests too deep, or is of another version.

    Example:
        >>> parse_file('{"schema": 1, "rows": []}', "schema", 1)
        {'rows': []}
    """
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError("expected JSON of a few levels, got too many") from error
    found = data.pop(key, None) if isinstance(data, dict) else None
    if type(found) is not int or found != version:
        raise ValueError(f"expected a file of {key} {version}, got {found!r}")
    return typing.cast("dict[str, Any]", data)


def from_data(cls: type[_Data], data: Any) -> _Data:
    """Rebuild a dataclass from what `dataclasses.asdict` made of it, with or without JSON between.

    A field that is not there has its default.

    Raises:
        ValueError: a field is unknown, missing or of another type; the message names it.

    Example:
        >>> from sparseinfer.timing.rounds import Quartiles, Timing
        >>> seconds = {"q1": 1, "median": 2, "q3": 3}
        >>> from_data(Timing, {"seconds": seconds, "minimum": 1, "inner": 8})
        Timing(seconds=Quartiles(q1=1, median=2, q3=3), minimum=1, inner=8)
        >>> from_data(Quartiles, {"q1": 1, "median": "2", "q3": 3})
        Traceback (most recent call last):
        ...
        ValueError: median: expected float, got '2'
    """
    return typing.cast(_Data, _read(cls, data, ""))


def _read(kind: Any, value: Any, place: str) -> Any:
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in of:
            return None
        (kind,) = [own for own in of if own is not type(None)]
        return _read(kind, value, place)
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, place)
    if origin is list and isinstance(value, list | tuple):
        return [_read(of[0], item, f"{place}[{i}]") for i, item in enumerate(value)]
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [of[0]] * len(value) if of[-1] is Ellipsis else of
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(_read(own, item, f"{place}[{i}]") for i, (own, item) in enumerate(pairs))
    if origin is dict and isinstance(value, Mapping):
        return {key: _read(of[1], item, f"{place}.{key}") for key, item in value.items()}
    if kind is float and type(value) in (int, float):
        return value
    if type(value) is kind:
        return value
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise ValueError(f"{place.lstrip('.') or 'all'}: expected {name}, got {_short(value)}")


def _read_fields(kind: Any, value: Any, place: str) -> Any:
    where = place.lstrip(".") or "all"
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected a {kind.__name__}, got {_short(value)}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    unknown = sorted(map(str, value.keys() - fields.keys()))
    if unknown:
        names = ", ".join(fields)
        raise ValueError(f"{where}: expected the fields {names}, got {', '.join(unknown)} too")
    missing = dataclasses.MISSING
    lacking = [
        name
        for name, field in fields.items()
        if name not in value and field.default is missing and field.default_factory is missing
    ]
    if lacking:
        raise ValueError(f"{where}: expected the field {lacking[0]}, got none")
    return kind(
        **{name: _read(hints[name], item, f"{place}.{name}") for name, item in value.items()}
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
