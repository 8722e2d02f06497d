"""from_quantized: layers that others quantised become sparse int8 ones of the same weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.convert.calibrate import QUANTIZED_KINDS
from sparseinfer.convert.from_torchao import (
    has_torchao_weight,
    torchao_scale,
    torchao_weight,
)
from sparseinfer.convert.observe import list_examples, run_on
from sparseinfer.layers.base import SparseLayer
from sparseinfer.layers.kinds import kind_named
from sparseinfer.layers.linear_conv import SparseLinear
from sparseinfer.layers.quantized import is_quantized
from sparseinfer.quantize.activations import ActivationScale
from sparseinfer.quantize.weights import QuantizedWeight

__all__ = ["from_quantized", "int8_weight", "sparse_of_quantized"]

_BETWEEN = ("Quantize", "DeQuantize", "QuantStub", "DeQuantStub")
"""Classes of torch's that turn float32 into quantised tensors and back."""


def from_quantized(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """Give a model of torch.ao's or torchao's int8 layers as one of sparse int8 layers.

    They take and give float32.

    Linear layers (static and dynamic) and convolutions, with or without a fused ReLU, keep their
    int8 weights and scales. The scale of a static layer's input is that of the quantised tensor
    that `example_inputs` bring there; a dynamic one's input is rounded token by token. Quantize and
    DeQuantize modules become nn.Identity. Other quantised operators (QFunctional) are left alone
    and cannot take float32.

    Linear layers of torchao (Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig and its
    static sibling) keep their integers and scales too, and the scale of a static layer's input;
    other inputs are rounded token by token, those of weight-only layers as well.

    Returns:
        A copy of `model`, or the sparse layer where it is itself one.

    Raises:
        TypeError: `model` is not an nn.Module.
        ValueError: a weight has zero points other than 0 or is no int8 one, a static layer is not
            reached by the example inputs, or there is no quantised layer; torchao's scales are not
            by rows.

    Source: torch.ao.quantization (https://pytorch.org/docs/stable/quantization.html), torchao
    (https://github.com/pytorch/ao).

    Example:
        >>> import warnings; warnings.simplefilter("ignore")
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        >>> quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        >>> from_quantized(quantized)[0].handle.info["value_type"]
        'int8'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(model).__name__}; try the model itself")
    layers = {name: own for name, own in model.named_modules() if _has_weight(own)}
    if not layers and not any(map(has_torchao_weight, model.modules())):
        raise ValueError(
            f"expected a model with quantised linear layers or convolutions, got "
            f"{type(model).__name__} without; try convert_to_sparse(model, weights='int8')"
        )
    scales = {} if example_inputs is None else _scales(model, layers, example_inputs)
    swaps: dict[nn.Module, nn.Module] = {}
    for name, layer in layers.items():
        if not _is_dynamic(layer) and name not in scales:
            raise ValueError(
                f"expected example_inputs that reach {name or 'the layer'} with quantised tensors, "
                "got none; try example_inputs=x"
            )
        swaps[layer] = sparse_of_quantized(layer, scales.get(name))
    for own in model.modules():
        if has_torchao_weight(own):
            swaps[own] = _sparse_of_torchao(own)
    for own in model.modules():
        if type(own).__name__ in _BETWEEN and type(own).__module__.startswith("torch.ao."):
            swaps[own] = nn.Identity()
    memo: dict[int, Any] = {id(old): new for old, new in swaps.items()}
    return copy.deepcopy(model, memo)


def sparse_of_quantized(layer: nn.Module, scale: ActivationScale | None) -> SparseLayer:
    """The sparse int8 layer of one of torch.ao's, whose input has this scale; None: by token.

    Raises:
        ValueError: see `from_quantized`.

    Example:
        >>> import warnings; warnings.simplefilter("ignore")
        >>> quantized = torch.ao.nn.quantized.dynamic.Linear(8, 4)
        >>> sparse_of_quantized(quantized, None)(torch.ones(1, 8)).shape
        torch.Size([1, 4])
    """
    own: Any = layer
    weight = int8_weight(own.weight())
    bias = own.bias() if callable(own.bias) else own.bias
    bias = None if bias is None else bias.detach().float()
    kind = kind_named(next(_kinds(layer)))
    dense = kind.rebuild(layer, weight.dequantize(), {} if bias is None else {"bias": bias})
    activation = "relu" if "ReLU" in type(layer).__name__ else "none"
    sparse: Any = kind.sparse
    found: SparseLayer = sparse.from_dense(
        dense, activation=activation, input_scale=scale, weights="int8", scales=weight.scales
    )
    return found.eval()


def _sparse_of_torchao(layer: Any) -> SparseLayer:
    weight, bias = torchao_weight(layer.weight), layer.bias
    biases = {} if bias is None else {"bias": bias.detach().float()}
    dense = SparseLinear.rebuild(layer, weight.dequantize(), biases)
    return SparseLinear.from_dense(
        dense, input_scale=torchao_scale(layer.weight), weights="int8", scales=weight.scales
    )


def int8_weight(weight: Tensor) -> QuantizedWeight:
    """The integers and the scales by output row of a weight that torch quantised.

    Raises:
        ValueError: its type is not int8, a zero point is not 0, or its scales are not by rows.

    Example:
        >>> import warnings; warnings.simplefilter("ignore")
        >>> int8_weight(torch.quantize_per_tensor(torch.ones(2, 2), 0.5, 0, torch.qint8)).scales
        tensor([0.5000, 0.5000])
    """
    if weight.dtype is not torch.qint8:
        raise ValueError(f"expected a qint8 weight, got {weight.dtype}; try dtype=torch.qint8")
    rows = weight.shape[0]
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scales = torch.full((rows,), weight.q_scale())
        zero_points = torch.tensor([weight.q_zero_point()])
    elif weight.q_per_channel_axis() == 0:
        scales = weight.q_per_channel_scales().float()
        zero_points = weight.q_per_channel_zero_points()
    else:
        raise ValueError(
            f"expected scales by output row, got some along axis {weight.q_per_channel_axis()}; "
            "try a per-channel observer of axis 0"
        )
    if zero_points.any():
        raise ValueError(
            "expected a symmetric weight, with zero points of 0, got "
            f"{int(zero_points[zero_points != 0][0])}; try a symmetric observer of weights"
        )
    return QuantizedWeight(weight.int_repr(), scales)


def _scales(
    model: nn.Module, layers: dict[str, nn.Module], example_inputs: Any
) -> dict[str, ActivationScale]:
    """The scales of the quantised tensors that these layers are called with."""
    found: dict[str, ActivationScale] = {}

    def watch(name: str) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0] if args else None
            if isinstance(x, Tensor) and x.is_quantized:
                # A QDQ pair before the layer would round to the same levels.
                found[name] = ActivationScale(x.q_scale(), x.q_zero_point())

        return note

    hooks = [own.register_forward_pre_hook(watch(name)) for name, own in layers.items()]
    run_on(model, list_examples(example_inputs), hooks)
    return found


def _has_weight(module: nn.Module) -> bool:
    return is_quantized(module) and any(_kinds(module))


def _kinds(module: nn.Module) -> Iterator[str]:
    """The kind of a quantised layer, by its class, where that has int8 kernels."""
    for cls in type(module).__mro__:
        name = cls.__name__.lower()
        if cls.__module__.startswith("torch.ao.nn.quantized") and name in QUANTIZED_KINDS:
            yield name


def _is_dynamic(module: nn.Module) -> bool:
    return any("quantized.dynamic" in cls.__module__ for cls in type(module).__mro__)
