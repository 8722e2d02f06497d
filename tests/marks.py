"""Marks of tests: what `make test` leaves to SLOW=1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some_slow(cases: Iterable[Any], *quick: str) -> list[Any]:
    """The cases of a test that takes seconds for each: slow ones, but for those that are named."""
    return [
        case
        if getattr(case, "__name__", case) in quick
        else pytest.param(case, marks=pytest.mark.slow)
        for case in cases
    ]
