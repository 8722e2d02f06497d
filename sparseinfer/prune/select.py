"""The k smallest magnitudes of many tensors, exactly, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Cut", "find_cut", "smallest"]

CHUNK = 1 << 22
"""Elements looked at together: what the extra memory is proportional to."""

_DIGIT_BITS = 16


@dataclass(frozen=True)
class Cut:
    """Where a ranking is cut: `count` magnitudes are below, or are among the `ties` that equal it.

    `key` is the bit pattern of the threshold's magnitude, in float64 where `wide`, else in float32.
    `apply` may be called again and starts anew each time.

    Example:
        >>> cut = find_cut([torch.tensor([3.0, -1.0]), torch.tensor([1.0])], count=1)
        >>> cut.threshold, [mask.tolist() for mask in cut.apply([torch.tensor([1.0, 1.0])])]
        (1.0, [[True, False]])
    """

    count: int
    key: int
    ties: int
    wide: bool = False

    @property
    def threshold(self) -> float:
        """The largest magnitude that is selected; 0 where nothing is."""
        kind = torch.int64 if self.wide else torch.int32
        return float(torch.tensor(self.key, dtype=kind).view(_float_of(self.wide)))

    def apply(self, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield for each tensor a boolean tensor of its shape and device, True where selected.

        Of equal magnitudes the first ones are selected: in the order of `tensors`, row-major within
        one.
        """
        ties = self.ties
        for tensor in tensors:
            mask = torch.empty(tensor.shape, dtype=torch.bool, device=tensor.device)
            flat, start = mask.view(-1), 0
            for keys in _keys(tensor, self.wide):
                part = keys < self.key
                if ties:
                    equal = (keys == self.key).nonzero().view(-1)[:ties]
                    part[equal] = True
                    ties -= len(equal)
                flat[start : start + len(part)] = part
                start += len(part)
            yield mask


def find_cut(tensors: Sequence[Tensor], count: int) -> Cut:
    """Find where the `count` smallest magnitudes over all tensors end.

    `tensors` are floating-point, of any shapes, dtypes and devices; the sequence is iterated two to
    four times (and once more by `Cut.apply`), so one that loads its items on access keeps one in
    memory. Magnitudes are compared exactly, float16 and bfloat16 as the float32 that they equal. A
    histogram of the upper bits of the float patterns, which order as the magnitudes do, narrows the
    cut down to a range, a histogram of the next bits within that range narrows it further.

    Raises:
        ValueError: a count below 0 or above the number of elements, or a NaN, which has no rank.
        TypeError: a tensor is not floating-point.

    Source: selection by the digits of a radix sort, Alabi et al., "Fast k-selection algorithms for
    graphics processing units", ACM JEA 2012.

    Example:
        >>> find_cut([torch.tensor([3.0, -1.0]), torch.tensor([2.0])], count=2).threshold
        2.0
    """
    total = 0
    wide = False
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise TypeError(
                f"expected floating-point tensors to rank, got {tensor.dtype}; try tensor.float()"
            )
        total += tensor.numel()
        wide = wide or tensor.dtype is torch.float64
    if not 0 <= count <= total:
        raise ValueError(f"expected a count of 0 to {total} elements, got {count}; try {total}")
    if count == 0:
        return Cut(0, 0, 0, wide)
    bits = 64 if wide else 32
    largest = int(torch.tensor(torch.inf, dtype=_float_of(wide)).view(_int_of(wide)))
    prefix, left = 0, count
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        histogram = torch.zeros(1 << _DIGIT_BITS, dtype=torch.int64)
        for tensor in tensors:
            for keys in _keys(tensor, wide):
                if shift == bits - _DIGIT_BITS:
                    bad = int((keys > largest).sum())
                    if bad:
                        raise ValueError(
                            f"expected weights that can be ranked, got {bad} NaN; "
                            "try leaving that layer out"
                        )
                else:
                    keys = keys[(keys >> (shift + _DIGIT_BITS)) == prefix]
                digits = (keys >> shift) & ((1 << _DIGIT_BITS) - 1)
                histogram += torch.bincount(digits, minlength=1 << _DIGIT_BITS).cpu()
        reached = histogram.cumsum(0)
        digit = int(torch.searchsorted(reached, left))
        left -= int(reached[digit] - histogram[digit])
        prefix = prefix << _DIGIT_BITS | digit
    return Cut(count, prefix, left, wide)


def smallest(tensors: Sequence[Tensor], count: int) -> list[Tensor]:
    """The masks of exactly the `count` smallest magnitudes over all tensors: True = among them.

    Raises:
        ValueError: as `find_cut`.
        TypeError: as `find_cut`.

    Example:
        >>> [mask.tolist() for mask in smallest([torch.tensor([3.0, -1.0, 2.0, 1.0])], 2)]
        [[False, True, False, True]]
    """
    return list(find_cut(tensors, count).apply(tensors))


def _float_of(wide: bool) -> torch.dtype:
    return torch.float64 if wide else torch.float32


def _int_of(wide: bool) -> torch.dtype:
    return torch.int64 if wide else torch.int32


def _keys(tensor: Tensor, wide: bool) -> Iterator[Tensor]:
    """The bit patterns of the magnitudes, a chunk at a time; as integers they order alike."""
    for part in tensor.detach().reshape(-1).split(CHUNK):
        # abs clears the sign of -0.0 too, so zero is one key.
        yield part.to(_float_of(wide)).abs().view(_int_of(wide))
