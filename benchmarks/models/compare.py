"""Compares a converted model's outputs with the pruned dense model's and with float64."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.layer_data import EPS, WrongResultError
from benchmarks.models.rows import Difference
from benchmarks.models.workload import Workload, widened


def bound(dense_error: float, largest: float) -> float:
    """Return the error against float64 that a converted model may have.

    Rounding spreads through a network as its layers amplify it, which the dense run measures; sums
    taken in another order may come out worse than its own, hence a factor. The second term stands
    where the dense run happens to be exact.
    """
    return 8 * dense_error + 64 * EPS * largest


def first_difference(expected: Tensor, got: Tensor, logits: Tensor) -> str:
    """Return where two texts part, and how close the dense model's decision was there."""
    shared = min(expected.shape[-1], got.shape[-1])
    apart = (expected[0, :shared] != got[0, :shared]).nonzero()
    if not len(apart):
        return f"expected {expected.shape[-1]} tokens, got {got.shape[-1]}"
    where = int(apart[0])
    best = logits[0, where - 1].topk(2).values
    return (
        f"expected token {int(expected[0, where])} at {where}, got {int(got[0, where])}; "
        f"the dense model preferred its token by {float(best[0] - best[1]):.2g}"
    )


@torch.inference_mode()
def compare(workload: Workload, converted: nn.Module) -> Difference:
    """Return how far the outputs of `converted` are from those of the workload's own model.

    Raises:
        WrongResultError: an output is further from float64 than rounding explains, is not a
            number, or a token differs.
    """
    dense, inputs = workload.model, workload.inputs
    answer = workload.run(dense, inputs)
    ours = workload.run(converted, inputs)
    expected = workload.outputs(dense, inputs, answer).double()
    got = workload.outputs(converted, inputs, answer).double()
    tokens = None
    if not answer.is_floating_point():
        if not torch.equal(answer, ours):
            raise WrongResultError(first_difference(answer, ours, expected))
        tokens = answer.shape[-1]
    exact = workload.outputs(copy.deepcopy(dense).double(), widened(inputs), answer)
    if got.shape != exact.shape:
        raise WrongResultError(
            f"expected outputs of shape {tuple(exact.shape)}, got {tuple(got.shape)}"
        )
    largest = float(exact.abs().max())
    error, dense_error = (float((y - exact).abs().max()) for y in (got, expected))
    allowed = bound(dense_error, largest)
    # Written so that a NaN counts as wrong.
    if not (error <= allowed and math.isfinite(largest)):
        raise WrongResultError(
            f"expected outputs within {allowed:.2g} of float64 (largest {largest:.3g}, "
            f"dense within {dense_error:.2g}), got one that is {error:.2g} away"
        )
    cosine = F.cosine_similarity(expected.flatten(1), got.flatten(1)).min()
    return Difference(
        between=float((got - expected).abs().max()),
        error=error,
        dense_error=dense_error,
        largest=largest,
        cosine=float(cosine),
        tokens=tokens,
    )
