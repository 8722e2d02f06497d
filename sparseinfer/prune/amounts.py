"""How many units an `amount` means: a fraction or a count, as in torch.nn.utils.prune."""

from __future__ import annotations

import numbers
from typing import Any

__all__ = ["check_sparsity", "count_of"]


def count_of(amount: Any, survivors: int) -> int:
    """Return how many of `survivors` units `amount` prunes.

    An integer is a count, a float a fraction of the survivors, rounded half to even: 1 prunes one
    unit, 1.0 all. A fraction given twice therefore leaves its square: 0.5 and 0.5 leave 0.25.

    Raises:
        TypeError: `amount` is neither an integer nor a float, or is a bool.
        ValueError: a negative count, more units than survive, or a fraction outside [0, 1].

    Source: the meaning of `amount` in torch.nn.utils.prune.

    Example:
        >>> count_of(1, 10), count_of(1.0, 10), count_of(0.5, 15), count_of(0.5, 5)
        (1, 10, 8, 2)
    """
    if isinstance(amount, bool) or not isinstance(amount, numbers.Real):
        raise TypeError(f"expected amount to be a float or an int, got {amount!r}, try 0.5")
    if isinstance(amount, numbers.Integral):
        if not 0 <= int(amount) <= survivors:
            raise ValueError(
                f"expected a count of 0 to {survivors} (what is left to prune), got {amount}, "
                "try a fraction such as 0.5"
            )
        return int(amount)
    if not 0.0 <= float(amount) <= 1.0:
        raise ValueError(f"expected a fraction in [0, 1], got {amount}, try 0.5, or a count as int")
    return round(float(amount) * survivors)


def check_sparsity(sparsity: float, name: str = "sparsity") -> float:
    """Return `sparsity` as a float.

    Raises:
        ValueError: it is outside [0, 1), or NaN.

    Example:
        >>> check_sparsity(0.9)
        0.9
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"expected {name} in [0, 1), got {sparsity}, try 0.9")
    return float(sparsity)
