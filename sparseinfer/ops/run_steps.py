"""The steps of a recurrent layer in one native call: the checks, and the call of a kernel row."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.formats.handles import open_packed
from sparseinfer.kernels.activations import check_choice
from sparseinfer.ops.arguments import BEST_ROW, checked_bias
from sparseinfer.ops.memory import require_memory

__all__ = ["CELLS", "recurrent_cpu", "recurrent_fake"]

CELLS = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Gates of each kind of cell."""


def recurrent_cpu(
    gates: Tensor, packed: Tensor, bias: Tensor | None, h: Tensor, c: Tensor | None,
    batch_sizes: Tensor | None, cell: str, reverse: bool, batch_first: bool, threads: int = 0,
    row: int = BEST_ROW,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run the steps of one layer and direction of `nn.LSTM`, `nn.GRU` or `nn.RNN`.

    `gates` is W_ih x + b_ih for all steps: `[steps, batch, G H]` float32, `[batch, steps, G H]`
    where `batch_first`, or `[rows, G H]` of packed sequences with their int64 `batch_sizes`; G is
    4, 3 or 1 by `cell`, a name of `CELLS`. `packed` is W_hh `[G H, H]`, `bias` b_hh. `h`, and `c`
    for an LSTM, are the initial states `[batch, H]`. `row` is an index of `native.rows()`, of a
    linear one. Returns the states after each step and the final ones of h and c (c: empty if there
    is none).

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, batch_sizes grow, the memory of a tensor
            was released, or no row can run.
        ValueError: the packed buffer is not valid, or the cell is unknown.

    Source: the equations are those of `torch.nn.LSTM`, `GRU` and `RNN`.

    Example:
        >>> from sparseinfer import pack
        >>> packed = pack(torch.zeros(8, 2))
        >>> y, h, c = recurrent_cpu(
        ...     torch.zeros(5, 3, 8), packed, None, torch.zeros(3, 2), torch.zeros(3, 2), None,
        ...     "lstm", False, False,
        ... )
        >>> y.shape
        torch.Size([5, 3, 2])
    """
    _check(gates, h, c, batch_sizes, cell)
    require_memory(gates=gates, bias=bias, h=h, c=c, batch_sizes=batch_sizes)
    given = [packed, h, *(tensor for tensor in (bias, c) if tensor is not None)]
    for tensor in given:
        if tensor.device != gates.device:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{gates.device} and {tensor.device}; try hx.to({str(gates.device)!r})"
            )
    handle = open_packed(packed)
    width, rows = h.shape[1], CELLS[cell] * h.shape[1]
    if handle.shape != (rows, width):
        raise RuntimeError(
            f"expected a packed weight of shape [{rows}, {width}], got {list(handle.shape)}; try "
            "the weight that this layer was built with"
        )
    if bias is not None:
        bias = checked_bias(bias, rows)
    gates = gates.contiguous()
    y = gates.new_empty((*gates.shape[:-1], width))
    # Changed in place by the native call: never the caller's.
    h = h.clone(memory_format=torch.contiguous_format)
    c = None if c is None else c.clone(memory_format=torch.contiguous_format)
    steps, batch = _extent(gates, h, batch_sizes, batch_first)
    if batch_sizes is not None:
        batch_sizes = batch_sizes.contiguous()
    handle.weights.recurrent(
        gates.data_ptr(), 0 if bias is None else bias.data_ptr(), h.data_ptr(),
        0 if c is None else c.data_ptr(), y.data_ptr(), steps, batch,
        1 if batch_first else batch, steps if batch_first else 1,
        0 if batch_sizes is None else batch_sizes.data_ptr(), cell, reverse, row,
        threads or torch.get_num_threads(),
    )  # fmt: skip
    return y, h, h.new_empty(0) if c is None else c


def recurrent_fake(
    gates: Tensor, packed: Tensor, bias: Tensor | None, h: Tensor, c: Tensor | None,
    batch_sizes: Tensor | None, cell: str, reverse: bool, batch_first: bool, threads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The shapes that `recurrent_cpu` gives."""
    _check(gates, h, c, batch_sizes, cell)
    y = gates.new_empty((*gates.shape[:-1], h.shape[1]))
    return y, h.new_empty(h.shape), h.new_empty(0 if c is None else h.shape)


def _check(
    gates: Tensor, h: Tensor, c: Tensor | None, batch_sizes: Tensor | None, cell: str
) -> None:
    check_choice("cell", cell, tuple(CELLS))
    states = [h] if c is None else [h, c]
    for tensor in (gates, *states):
        if tensor.dtype is not torch.float32:
            raise RuntimeError(
                f"expected float32 gates and states, got {tensor.dtype}; try x.float()"
            )
    if (c is not None) != (cell == "lstm"):
        raise RuntimeError(f"expected c for an LSTM alone, got cell {cell!r}; try c=None")
    if h.dim() != 2 or any(state.shape != h.shape for state in states):
        raise RuntimeError(
            f"expected states of shape [batch, H], got {[list(state.shape) for state in states]}; "
            "try state.unsqueeze(0)"
        )
    dims = 3 if batch_sizes is None else 2
    if gates.dim() != dims or gates.shape[-1] != CELLS[cell] * h.shape[1]:
        raise RuntimeError(
            f"expected gates of {dims} dimensions, the last of {CELLS[cell] * h.shape[1]}, got "
            f"shape {list(gates.shape)}; try the output of the input projection"
        )


def _extent(
    gates: Tensor, h: Tensor, batch_sizes: Tensor | None, batch_first: bool
) -> tuple[int, int]:
    """Steps and batch."""
    if batch_sizes is None:
        steps, batch = gates.shape[1 if batch_first else 0], gates.shape[0 if batch_first else 1]
        if batch != h.shape[0]:
            raise RuntimeError(
                f"expected states of {batch} sequences, got {h.shape[0]}; try matching the batch"
            )
        return steps, batch
    if batch_sizes.dtype is not torch.int64 or batch_sizes.dim() != 1 or batch_sizes.is_cuda:
        raise RuntimeError(
            f"expected batch_sizes as an int64 vector on the CPU, got {batch_sizes.dtype} of shape "
            f"{list(batch_sizes.shape)}; try pack_padded_sequence"
        )
    if int(batch_sizes.sum()) != gates.shape[0]:
        raise RuntimeError(
            f"expected batch_sizes that add up to the {gates.shape[0]} rows of gates, got "
            f"{int(batch_sizes.sum())}; try pack_padded_sequence"
        )
    return batch_sizes.numel(), h.shape[0]
