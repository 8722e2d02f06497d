"""Narrow types: the words for them, scales of weights and activations, and what rounding costs.

Everything here computes with torch alone; the packed formats and the layers stand above it.
"""

from sparseinfer.quantize.activations import (
    ActivationScale,
    quantize_per_token,
    scale_of_range,
)
from sparseinfer.quantize.error import sqnr_db
from sparseinfer.quantize.fake import add_fake_quant, remove_fake_quant
from sparseinfer.quantize.observers import OBSERVERS, Observer, observer
from sparseinfer.quantize.scheme import SCHEMES, Scheme, scheme_for
from sparseinfer.quantize.weights import QuantizedWeight, quantize_weight, weight_scales

__all__ = [
    "OBSERVERS",
    "SCHEMES",
    "ActivationScale",
    "Observer",
    "QuantizedWeight",
    "Scheme",
    "add_fake_quant",
    "observer",
    "quantize_per_token",
    "quantize_weight",
    "remove_fake_quant",
    "scale_of_range",
    "scheme_for",
    "sqnr_db",
    "weight_scales",
]
