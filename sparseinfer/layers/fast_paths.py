"""The inference fast paths of torch's transformer layers, which read dense weights themselves."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.nn import functional as F

from sparseinfer.layers.kinds import packed_layers

__all__ = ["FAST_PATH_SWITCHES", "leave_fast_paths", "restore_fast_paths"]

FAST_PATH_SWITCHES = ("activation_relu_or_gelu", "use_nested_tensor")
"""Attributes of torch's encoder layers and encoders that `leave_fast_paths` sets."""


def leave_fast_paths(model: nn.Module) -> None:
    """Turn off torch's inference fast paths in transformer layers that hold a sparse layer.

    They compute from dense weights in one C++ call, without calling the layers that hold them. The
    switches are torch's own; other layers keep their fast path.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> from sparseinfer import SparseLinear
        >>> layer.linear1 = SparseLinear.from_dense(layer.linear1)
        >>> leave_fast_paths(layer)
        >>> layer.activation_relu_or_gelu
        0
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder) and any(
            packed_layers(module)
        ):
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0


def restore_fast_paths(model: nn.Module, dense: set[nn.Module]) -> None:
    """Set the switches of torch's transformer layers, which a conversion turned off, as torch's own
    constructors set them.

    `dense` are the layers of `model` that are dense again.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> layer.activation_relu_or_gelu = 0
        >>> restore_fast_paths(layer, {layer.linear1})
        >>> layer.activation_relu_or_gelu
        1
    """
    holders = [module for module in model.modules() if not dense.isdisjoint(module.modules())]
    for layer in holders:
        if isinstance(layer, nn.TransformerEncoderLayer):
            if layer.activation is F.relu or isinstance(layer.activation, nn.ReLU):
                layer.activation_relu_or_gelu = 1
            elif layer.activation is F.gelu or isinstance(layer.activation, nn.GELU):
                layer.activation_relu_or_gelu = 2
    for encoder in holders:  # which asks its first layer
        if isinstance(encoder, nn.TransformerEncoder):
            first: Any = encoder.layers[0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of why a layer has no fast path
                like = nn.TransformerEncoder(first, 0, None, encoder.enable_nested_tensor)
            encoder.use_nested_tensor = like.use_nested_tensor
