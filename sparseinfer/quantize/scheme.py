"""Which types weights and activations may have together: one table, for every entry point."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

__all__ = ["SCHEMES", "Scheme", "renamed_value_type", "scheme_for"]


@dataclass(frozen=True)
class Scheme:
    """Types of the stored weights and of the activations they are multiplied with.

    `missing` names what a combination that is not built yet lacks; it is empty where it is built.
    `quantizes` tells that activations are rounded to integers, by calibration or at every call.
    """

    weights: str
    activations: str
    missing: str = ""

    @property
    def quantizes(self) -> bool:
        """Whether activations are rounded to integers.

        Example:
            >>> scheme_for("int8").quantizes, scheme_for("bfloat16").quantizes
            (True, False)
        """
        return self.activations.startswith("int")

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded to a narrower type than float32.

        Example:
            >>> scheme_for("bfloat16").rounds, scheme_for("bfloat16", "bfloat16").rounds
            (False, True)
        """
        return self.activations != "float32"

    def __str__(self) -> str:
        return f"weights={self.weights!r}, activations={self.activations!r}"


SCHEMES: tuple[Scheme, ...] = (
    Scheme("float32", "float32"),
    Scheme("bfloat16", "float32"),
    Scheme("int8", "int8"),
    Scheme("bfloat16", "bfloat16"),
    Scheme("int8", "float32", "kernels that widen int8 weights to float32"),
    Scheme("int8", "int16", "kernels for int16 activations"),
    Scheme("int4", "float32", "a packed format of int4 weights"),
    Scheme("int4", "int8", "a packed format of int4 weights"),
    Scheme("int4", "int16", "a packed format of int4 weights"),
)
"""Built ones first: of several with the same weights the first is what no `activations` stands
for."""


def scheme_for(weights: str = "float32", activations: str | None = None) -> Scheme:
    """The row of `SCHEMES` of these words; None: the activations that suit the weights.

    Raises:
        ValueError: a word is unknown, or no row has both.
        NotImplementedError: the combination is not built yet.

    Example:
        >>> str(scheme_for("int8"))
        "weights='int8', activations='int8'"
        >>> scheme_for("int4")
        Traceback (most recent call last):
        NotImplementedError: expected weights and activations of float32 and float32, bfloat16 and \
float32, int8 and int8 or bfloat16 and bfloat16, got int4 and float32, which needs a packed format \
of int4 weights and is not built yet; try weights='int8'
    """
    for name, word, known in (
        ("weights", weights, {row.weights: None for row in SCHEMES}),
        ("activations", activations, {row.activations: None for row in SCHEMES}),
    ):
        if word not in known and not (name == "activations" and word is None):
            raise ValueError(
                f"expected {name} of {', '.join(known)}, got {word!r}; try {name}='int8'"
            )
    for row in SCHEMES:
        if row.weights == weights and activations in (None, row.activations):
            if row.missing:
                raise NotImplementedError(
                    f"expected weights and activations of {_built()}, got {row.weights} and "
                    f"{row.activations}, which needs {row.missing} and is not built yet; try "
                    "weights='int8'"
                )
            return row
    raise ValueError(
        f"expected weights and activations of {_built()}, got {weights} and {activations}; try "
        f"activations=None, which suits the weights"
    )


def renamed_value_type(weights: str | None, value_type: str | None) -> str | None:
    """The word for the weights, where `value_type`, which it was called once, may be given too.

    Raises:
        TypeError: both are given, and differ.

    Example:
        >>> renamed_value_type("int8", None)
        'int8'
    """
    if value_type is None:
        return weights
    if weights not in (None, "float32", value_type):
        raise TypeError(
            f"expected weights or value_type, got weights={weights!r} and "
            f"value_type={value_type!r}; try weights={weights!r} alone"
        )
    warnings.warn(
        f"value_type is called weights now; try weights={value_type!r}",
        DeprecationWarning,
        stacklevel=3,
    )
    return value_type


def _built() -> str:
    pairs = [f"{row.weights} and {row.activations}" for row in SCHEMES if not row.missing]
    return f"{', '.join(pairs[:-1])} or {pairs[-1]}"
