"""Weights that are unpacked while a model computes: how that is noticed, and the warning."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

from torch import nn

__all__ = ["READS_TO_WARN", "called_by_a_module", "warn_of_reads"]

READS_TO_WARN = 3
"""Unpackings of a weight inside forward calls that are no accident any more."""


def warn_of_reads(layer: str) -> None:
    """Warn that forward calls compute with the weight of a sparse `layer` themselves.

    Example:
        >>> with warnings.catch_warnings(record=True) as found:
        ...     warn_of_reads("SparseLinear(4, 4)")
        >>> len(found)
        1
    """
    warnings.warn(
        f"expected a sparse layer to be called, got {READS_TO_WARN} forward calls that compute "
        f"with the weight of {layer} themselves: it is unpacked each time, slower than a dense "
        "layer; try convert_to_sparse with example_inputs, which leaves layers dense that are not "
        "called, or sparseinfer.to_dense(model)",
        UserWarning,
        stacklevel=3,
    )


def called_by_a_module() -> bool:
    """Whether a call of an `nn.Module` is under way in this thread.

    Example:
        >>> called_by_a_module()
        False
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is nn.Module._call_impl.__code__:
            return True
        frame = frame.f_back
    return False
