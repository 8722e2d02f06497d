"""The arguments of `convert_to_sparse`, checked in one place."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparseinfer.convert.guarantee import BASELINES
from sparseinfer.convert.narrow import MIN_SQNR_DB
from sparseinfer.formats.table import check_format
from sparseinfer.quantize.scheme import Scheme, scheme_for
from sparseinfer.timing.machine import HOST, target_facts

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """The arguments of `convert_to_sparse`, checked.

    Raises:
        ValueError: see there.
    """

    example_inputs: Any = None
    min_speedup: float = 1.05
    formats: str | Sequence[str] | None = None
    inplace: bool = False
    threads: int | None = None
    progress: bool | None = None
    baseline: str = "eager"
    verify: bool = True
    budget_s: float = 60.0
    cache: bool | str | os.PathLike[str] = True
    weights: str = "float32"
    activations: str | None = None
    calibration: Any = None
    min_sqnr: float = MIN_SQNR_DB
    evaluate: Callable[[nn.Module], float] | None = None
    target: str = HOST

    @property
    def scheme(self) -> Scheme:
        """The types of weights and activations."""
        return scheme_for(self.weights, self.activations)

    @property
    def names(self) -> Sequence[str] | None:
        """The formats to try; None: those that suit."""
        return (self.formats,) if isinstance(self.formats, str) else self.formats

    def __post_init__(self) -> None:
        if not self.min_speedup >= 0:
            raise ValueError(
                f"expected min_speedup >= 0, got {self.min_speedup}; try min_speedup=1.05"
            )
        for name in self.names or ():
            check_format(name)
        if self.baseline not in BASELINES:
            raise ValueError(
                f"expected a baseline of {', '.join(BASELINES)}, got {self.baseline!r}; "
                "try baseline='eager'"
            )
        if self.scheme.rounds and math.isnan(self.min_sqnr):
            raise ValueError("expected min_sqnr in decibels, got nan; try min_sqnr=20")
        if not self.budget_s > 0:
            raise ValueError(
                f"expected budget_s > 0, got {self.budget_s}; try verify=False to measure less"
            )
        target_facts(self.target)
        if self.target != HOST and self.example_inputs is not None:
            raise ValueError(
                f"expected no example_inputs for target={self.target!r}, got some: nothing of "
                "another machine can be measured here; try them on that machine, or the cost model "
                "without them"
            )
