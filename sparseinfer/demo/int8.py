"""The demo's dense int8 network: torch's own quantisation, what int8 sparse has to compare with."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from sparseinfer.convert.scan import brief

CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 64


def calibration_batches(images: Tensor) -> list[Tensor]:
    """The first training images, in batches, from which inputs' scales are found."""
    return list(images[:CALIBRATION_IMAGES].split(CALIBRATION_BATCH))


def dense_int8(model: nn.Module, batches: list[Tensor]) -> tuple[nn.Module | None, str]:
    """torch.ao's static quantisation of a network, or why this build of torch has none.

    BatchNorms are folded, ReLUs fused, and activations stay int8 from layer to layer. Weights are
    of 7 bits where the engine adds up products in 16.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
        >>> quantized, reason = dense_int8(network, [torch.rand(2, 1, 8, 8)])
        >>> (quantized is None) == bool(reason)
        True
    """
    try:
        with warnings.catch_warnings():  # torch would have torch.ao.quantization given up
            warnings.simplefilter("ignore")
            return _quantized(model, batches), ""
    except (ImportError, AttributeError, RuntimeError, NotImplementedError) as error:
        return None, brief(error)


def _quantized(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    mapping = get_default_qconfig_mapping(torch.backends.quantized.engine)
    observed = prepare_fx(copy.deepcopy(model), mapping, (batches[0],))
    with torch.inference_mode():
        for batch in batches:
            observed(batch)
    quantized: nn.Module = convert_fx(observed)
    with torch.inference_mode():
        quantized(batches[0])  # an engine that lacks an operator says so when it is called
    return quantized
