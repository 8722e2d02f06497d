"""What a model may hold that no engine runs, collected so that one error tells all of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Missing", "UnsupportedOperators"]


@dataclass(frozen=True)
class Missing:
    """An operation that cannot be exported, the module it comes from, and why.

    Example:
        >>> str(Missing("aten.sort.default", "head", "no operator of the engine computes it"))
        "aten.sort.default in 'head': no operator of the engine computes it"
    """

    op: str
    module: str
    why: str

    def __str__(self) -> str:
        return f"{self.op} in {self.module!r}: {self.why}"


class UnsupportedOperators(ValueError):
    """A model holds operations that the engine has not; `missing` are all of them.

    Example:
        >>> error = UnsupportedOperators([Missing("aten.sort.default", "head", "it is missing")])
        >>> len(error.missing)
        1
    """

    def __init__(
        self,
        missing: list[Missing],
        instead: str = "sparseinfer.convert_to_sparse, which leaves these parts to torch",
    ) -> None:
        self.missing = list(dict.fromkeys(missing))
        lines = "\n  ".join(map(str, self.missing))
        super().__init__(
            f"expected a model of operators that the engine has, got {len(self.missing)} that it "
            f"has not; try {instead}:\n  {lines}"
        )
