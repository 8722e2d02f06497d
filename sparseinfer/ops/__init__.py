"""The operators `torch.ops.sparseinfer.*`: importing this package defines them."""

from sparseinfer.ops.operators import ACTIVATIONS, PADDING_MODES, conv1d, conv2d, linear

__all__ = ["ACTIVATIONS", "PADDING_MODES", "conv1d", "conv2d", "linear"]
