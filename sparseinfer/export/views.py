"""Where the elements of a tensor stand that was only reshaped, permuted and cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparseinfer.export.graph import Node, Value

__all__ = ["Factor", "View", "joined", "view_of"]

Factor = tuple[int, int]
"""A number of elements, and the distance in the source from one to the next."""


@dataclass(frozen=True)
class View:
    """A tensor as elements of another one: each of its axes is a product of factors.

    Example:
        >>> whole = View.of(Value("x", (2, 6)))
        >>> whole.reshaped((2, 3, 2)).permuted([1, 0, 2]).strides()
        [2, 6, 1]
        >>> whole.cut(1, 2, 4).offset
        2
    """

    source: Value
    axes: tuple[tuple[Factor, ...], ...]
    offset: int = 0

    @staticmethod
    def of(value: Value) -> View:
        axes, step = [], 1
        for size in reversed(value.shape):
            axes.append(((size, step),))
            step *= size
        return View(value, tuple(reversed(axes)))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(size for size, _ in axis) for axis in self.axes)

    def permuted(self, axes: Sequence[int]) -> View:
        return View(self.source, tuple(self.axes[axis] for axis in axes), self.offset)

    def cut(self, axis: int, first: int, count: int) -> View | None:
        """`count` elements along an axis from `first` on; None where that is more than a stride."""
        factors = joined(self.axes[axis])
        if len(factors) > 1:
            return None
        step = factors[0][1] if factors else 0
        axes = (*self.axes[:axis], ((count, step),), *self.axes[axis + 1 :])
        return View(self.source, axes, self.offset + first * step)

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """With other axes; None where one of them would be a part of several factors."""
        left = self.factors()
        axes = []
        for size in shape:
            found: list[Factor] = []
            while size > 1:
                have, step = left.pop(0)
                if size % have == 0:
                    found.append((have, step))
                    size //= have
                elif have % size == 0:
                    rest = have // size
                    found.append((size, step * rest))
                    left.insert(0, (rest, step))
                    size = 1
                else:
                    return None
            axes.append(tuple(found))
        return View(self.source, tuple(axes), self.offset)

    def strides(self) -> list[int] | None:
        """Of each axis, 0 for one of a single element; None where an axis has several."""
        found = []
        for axis in self.axes:
            factors = joined(axis)
            if len(factors) > 1:
                return None
            found.append(factors[0][1] if factors else 0)
        return found

    def factors(self) -> list[Factor]:
        """Of all axes in their order, joined where they follow one another in the source."""
        return joined([factor for axis in self.axes for factor in axis])

    def is_whole(self) -> bool:
        """Whether it has all elements of its source, in the order in which they stand there."""
        return self.offset == 0 and self.factors() in ([], [(math.prod(self.source.shape), 1)])


def joined(factors: Sequence[Factor]) -> list[Factor]:
    """As few factors as they are; those of one element are none.

    Example:
        >>> joined([(2, 6), (3, 2), (1, 9), (2, 1)])
        [(12, 1)]
    """
    found: list[Factor] = []
    for size, step in factors:
        if size == 1:
            continue
        if found and found[-1][1] == size * step:
            found[-1] = (found[-1][0] * size, step)
        else:
            found.append((size, step))
    return found


def view_of(value: Value, producers: dict[Value, Node], cuts: bool = False) -> View:
    """A value as a view of what was last computed before it.

    `cuts`: slices are looked through as well.

    Example:
        >>> x, y = Value("x", (2, 3)), Value("y", (3, 2))
        >>> view_of(y, {y: Node("permute", "", [x], y, {"axes": [1, 0]})}).strides()
        [1, 3]
    """
    node = producers.get(value)
    known = ("reshape", "permute", "slice") if cuts else ("reshape", "permute")
    if node is None or node.op not in known:
        return View.of(value)
    assert node.inputs[0] is not None
    before = view_of(node.inputs[0], producers, cuts)
    after: View | None
    if node.op == "permute":
        after = before.permuted(node.attributes["axes"])
    elif node.op == "reshape":
        after = before.reshaped(value.shape)
    else:
        after = _sliced(before, node)
    return View.of(value) if after is None else after


def _sliced(before: View, node: Node) -> View | None:
    given = node.attributes
    if given["step"] != 1:
        return None
    return before.cut(given["axis"], given["start"], node.output.shape[given["axis"]])
