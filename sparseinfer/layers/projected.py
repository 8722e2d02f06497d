"""The steps of an LSTM whose hidden state is projected (`proj_size`), and its weights as rows.

h_t = W_hr m_t, with m_t what an LSTM without a projection puts out; H units, P outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["by_units", "from_units", "projected_steps"]


def by_units(part: str, weight: Tensor, units: int) -> Tensor:
    """A weight as `[H, ...]`: W_ih and W_hh `[4 H, K]` by unit, W_hr (`part` "hr") `[P, H]` turned.

    Example:
        >>> by_units("ih", torch.ones(32, 3), 8).shape, by_units("hr", torch.ones(5, 8), 8).shape
        (torch.Size([8, 12]), torch.Size([8, 5]))
    """
    if part == "hr":
        return weight.t()
    return weight.unflatten(0, (-1, units)).transpose(0, 1).flatten(1)


def from_units(part: str, weight: Tensor, shape: torch.Size) -> Tensor:
    """The weight of this shape: undoes `by_units`.

    Example:
        >>> from_units("ih", torch.ones(8, 12), torch.Size((32, 3))).shape
        torch.Size([32, 3])
    """
    if part == "hr":
        return weight.t()
    return weight.unflatten(1, (-1, shape[1])).transpose(0, 1).reshape(shape)


def projected_steps(
    gates: Tensor, recurrence: Callable[[Tensor], Tensor], projection: Callable[[Tensor], Tensor],
    h: Tensor, c: Tensor, sizes: Tensor | None, reverse: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run the steps of one layer and direction, see `sparseinfer.ops.run_steps.recurrent_cpu`.

    `recurrence` computes the part of the gates that is W_hh h + b_hh, `projection` W_hr m. `h` is
    `[batch, P]`, `c` `[batch, H]`; neither is changed.

    Source: Sak, Senior and Beaufays, "Long Short-Term Memory Based Recurrent Neural Network
    Architectures for Large Vocabulary Speech Recognition", 2014 (arXiv 1402.1128).

    Example:
        >>> y, h, c = projected_steps(
        ...     torch.zeros(5, 3, 8), lambda h: h.new_zeros(3, 8), lambda m: m[:, :1],
        ...     torch.zeros(3, 1), torch.zeros(3, 2), None, False, False,
        ... )
        >>> y.shape, h.shape, c.shape
        (torch.Size([5, 3, 1]), torch.Size([3, 1]), torch.Size([3, 2]))
    """
    turned = batch_first and sizes is None
    steps: Any = gates.transpose(0, 1) if turned else gates
    steps = steps.unbind(0) if sizes is None else steps.split(sizes.tolist())
    outputs = []
    for own in reversed(steps) if reverse else steps:
        running = own.shape[0]  # of packed sequences those that are longer, or have begun
        i, f, g, o = (own + recurrence(h[:running])).chunk(4, dim=-1)
        kept = f.sigmoid() * c[:running] + i.sigmoid() * g.tanh()
        out = projection(o.sigmoid() * kept.tanh())
        outputs.append(out)
        h, c = torch.cat([out, h[running:]]), torch.cat([kept, c[running:]])
    if reverse:
        outputs.reverse()
    if sizes is not None:
        return torch.cat(outputs), h, c
    return torch.stack(outputs, dim=1 if turned else 0), h, c
