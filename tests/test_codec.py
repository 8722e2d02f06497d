"""Results as JSON: what comes back is what went out, and what does not fit is named."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseinfer.codec import from_data, parse_file, rounded, to_text


@dataclass
class Part:
    name: str
    share: float = 0.5


@dataclass
class Whole:
    count: int
    sizes: tuple[int, int]
    parts: list[Part]
    by_name: dict[str, Part]
    best: Part | None = None
    flag: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()


WHOLE = Whole(
    2,
    (1, 2),
    [Part("a"), Part("b", 1)],
    {"c": Part("c")},
    Part("d"),
    flag=True,
    facts={"any": [None, 1.5]},
    shape=(3, 4, 5),
)


def test_what_was_written_is_read() -> None:
    for whole in (WHOLE, Whole(0, (0, 0), [], {})):
        data = dataclasses.asdict(whole)
        assert from_data(Whole, data) == whole
        assert from_data(Whole, json.loads(to_text(data))) == whole
        assert from_data(Whole, json.loads(to_text(data, rows=True))) == whole


def test_fields_that_are_not_there_have_their_defaults() -> None:
    found = from_data(Whole, {"count": 1, "sizes": [1, 2], "parts": [{"name": "a"}], "by_name": {}})
    assert found == Whole(1, (1, 2), [Part("a")], {})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"count": 1.5}, "count: expected int, got 1.5"),
        ({"count": True}, "count: expected int, got True"),
        ({"flag": 1}, "flag: expected bool, got 1"),
        ({"sizes": [1]}, r"sizes: expected tuple\[int, int\], got \[1\]"),
        ({"sizes": [1, "2"]}, r"sizes\[1\]: expected int, got '2'"),
        ({"parts": {}}, r"parts: expected list\[.*Part\], got {}"),
        ({"parts": [{"name": "a"}, {"name": 3}]}, r"parts\[1\]\.name: expected str, got 3"),
        ({"parts": [7]}, r"parts\[0\]: expected a Part, got 7"),
        ({"parts": [{}]}, r"parts\[0\]: expected the field name, got none"),
        ({"by_name": {"c": {"name": "c", "share": "1"}}}, "by_name.c.share: expected float, got"),
        ({"best": {"name": "d", "more": 1}}, "best: expected the fields name, share, got more too"),
        ({"best": "x" * 99}, r"best: expected a Part, got 'x+\.\.\.$"),
        ({"other": 1}, "all: expected the fields count, sizes,.* got other too"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_data(Whole, dataclasses.asdict(WHOLE) | change)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_object_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="all: expected a Whole, got"):
        from_data(Whole, data)


@pytest.mark.parametrize("text", ["{", "[]", "3", "{}", '{"version": "1"}', '{"version": 2}'])
def test_text_of_another_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a file of version 1, got|^Expecting"):
        parse_file(text, "version", 1)


def test_numbers_that_json_has_not_are_refused_where_that_is_asked() -> None:
    assert "NaN" in to_text({"a": math.nan})
    for rows in (False, True):
        with pytest.raises(ValueError, match="JSON compliant"):
            to_text({"a": [math.inf]}, rows=rows, finite=True)


@given(st.floats(-1e300, 1e300))
def test_rounding_keeps_five_digits(value: float) -> None:
    found = rounded({"a": [value, (value,)]})["a"]
    assert found[0] == pytest.approx(value, rel=5e-5, abs=1e-310) and found[1] == [found[0]]
    assert rounded(found) == found
