"""The operators `torch.ops.sparseinfer.*`: importing this package defines them."""

from sparseinfer.ops.int8_operators import (
    conv1d_int8,
    conv2d_int8,
    linear_dense_int8,
    linear_int8,
)
from sparseinfer.ops.operators import ACTIVATIONS, PADDING_MODES, conv1d, conv2d, linear

__all__ = [
    "ACTIVATIONS",
    "PADDING_MODES",
    "conv1d",
    "conv1d_int8",
    "conv2d",
    "conv2d_int8",
    "linear",
    "linear_dense_int8",
    "linear_int8",
]
