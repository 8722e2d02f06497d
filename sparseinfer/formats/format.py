"""What a row of the table of formats holds beside what the native table tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from sparseinfer.formats.patterns import Pattern

__all__ = ["Format", "PrunedWeight"]


@dataclass(frozen=True)
class PrunedWeight:
    """What is known of a layer's weight where a format is chosen for it.

    `op` is `linear` or `conv`; `density` is the share of non-zeros; `pattern` is None where nobody
    looked for one; `weight` is the tensor that the layer holds, where it holds one. `fewest_tokens`
    is the least N of the layer's calls, 0 where that is not known, and None where N says nothing.
    `weights` is the type of the values wanted.

    Example:
        >>> PrunedWeight("linear", 0.5).kind
        'unstructured'
    """

    op: str
    density: float
    pattern: Pattern | None = None
    weight: Tensor | None = None
    fewest_tokens: int | None = None
    weights: str = "float32"

    @property
    def kind(self) -> str:
        """The kind of the pattern."""
        return "unstructured" if self.pattern is None else self.pattern.kind


def _no_params(weight: PrunedWeight) -> dict[str, Any]:
    return {}


def _as_asked(weight: Tensor, params: Mapping[str, Any]) -> dict[str, Any]:
    return dict(params)


def _never(weight: PrunedWeight) -> bool:
    return False


def _no_reason(weight: PrunedWeight) -> str:
    return ""


@dataclass(frozen=True)
class Format:
    """A packed format, as Python knows it; its bytes, value types and parameters are the native
    library's (`native.formats()`).

    `options` are the parameters of `formats.pack` that a packed buffer tells. `narrow` says what
    becomes of float16 and bfloat16 weights: they are `kept` as such, and the kernels of a GPU
    compute in that type; they are `widened` to float32; or they are `refused`. `pairs` tells that
    bfloat16 values may stand in pairs, which multiply x in that type. `on_device(weight,
    groups, **params)` packs a weight where it lies; None: the CPU packs it. `adopted(weight,
    params)` gives the parameters for a sparse tensor of torch's.

    The others are the rule by which conversion tries the format. The CPU tries the formats with
    `on_cpu` for every weight, in the order of the table, and takes the first that can store it. A
    GPU times all that suit: `gpu_ops` names the operations that it has kernels for, `suits` tells
    whether a weight's zeros are of the right kind, which `gains_from` says in words, and
    `stays_dense` says why one stays dense that no format suits, where this one's kernels know it.
    `params` are what `formats.pack` is told of a weight.

    Example:
        >>> Format("coo").suits(PrunedWeight("linear", 0.5))
        False
    """

    name: str
    options: tuple[str, ...] = ()
    narrow: Literal["kept", "widened", "refused"] = "refused"
    pairs: bool = False
    on_device: Callable[..., Tensor] | None = None
    adopted: Callable[[Tensor, Mapping[str, Any]], dict[str, Any]] = _as_asked
    on_cpu: bool = False
    gpu_ops: tuple[str, ...] = ()
    suits: Callable[[PrunedWeight], bool] = _never
    gains_from: str = ""
    stays_dense: Callable[[PrunedWeight], str] = _no_reason
    params: Callable[[PrunedWeight], dict[str, Any]] = _no_params
