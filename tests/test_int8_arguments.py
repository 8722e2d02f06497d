"""What int8 layers are given: strided and released memory, and inputs of another size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import Tensor, nn

from sparseinfer import SparseConv1d, SparseConv2d, SparseLinear
from sparseinfer.quantize import ActivationScale, scale_of_range

SCALE = scale_of_range(-2.5, 3.0)

LAYERS: list[tuple[nn.Module, ActivationScale | None, tuple[int, ...]]] = [
    (nn.Linear(40, 24), None, (3, 40)),
    (nn.Linear(40, 24), SCALE, (3, 40)),
    (nn.Conv1d(4, 24, 3, padding=1), SCALE, (2, 4, 16)),
    (nn.Conv2d(4, 24, 3, padding=1, padding_mode="circular"), SCALE, (2, 4, 6, 8)),
]
"""Dense layers of 24 outputs, the scale of their inputs, and a shape of those."""


def _sparse(dense: Any, scale: ActivationScale | None) -> Any:
    dense = copy.deepcopy(dense)
    dense.weight.data = sparse_weight(dense.weight.shape, 0.4)
    classes: dict[type, Any] = {
        nn.Linear: SparseLinear, nn.Conv1d: SparseConv1d, nn.Conv2d: SparseConv2d,
    }  # fmt: skip
    return classes[type(dense)].from_dense(dense, weights="int8", input_scale=scale).eval()


def _release(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


@pytest.mark.parametrize(("dense", "scale", "shape"), LAYERS, ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_a_strided_bias_is_read_where_it_lies(
    dense: nn.Module, scale: ActivationScale | None, shape: tuple[int, ...], mode: Any
) -> None:
    layer, x, values = _sparse(dense, scale), torch.randn(shape), torch.randn(48)
    layer.bias = nn.Parameter(values[::2].clone())
    with mode():
        expected = layer(x)
        layer.bias = nn.Parameter(values[::2])
        assert not layer.bias.is_contiguous()
        for _ in range(3):
            torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("dense", "scale", "shape"), LAYERS, ids=str)
def test_a_strided_input_is_read_where_it_lies(
    dense: nn.Module, scale: ActivationScale | None, shape: tuple[int, ...]
) -> None:
    layer, x = _sparse(dense, scale), torch.randn((*shape, 2))
    torch.testing.assert_close(layer(x[..., 1]), layer(x[..., 1].contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize(("dense", "scale", "shape"), LAYERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strided", [False, True])
def test_released_memory_raises(
    dense: nn.Module, scale: ActivationScale | None, shape: tuple[int, ...], dtype: torch.dtype,
    strided: bool,
) -> None:  # fmt: skip
    layer = _sparse(dense, scale).to(dtype)
    x = torch.randn((*shape, 2), dtype=dtype)[..., 0]
    x = x if strided else x.contiguous()
    bias = torch.randn(48, dtype=dtype)[::2]
    layer.bias = nn.Parameter(bias if strided else bias.contiguous())
    _release(layer.bias)
    with pytest.raises(RuntimeError, match="memory of bias"):
        layer(x)
    layer.bias = None
    _release(x)
    with pytest.raises(RuntimeError, match=r"memory of .*input"):
        layer(x)


@pytest.mark.parametrize(
    ("number", "shape", "expected"),
    [
        (0, (3, 41), r"\(3x41 and 40x24\)"),
        (1, (2, 3, 39), r"\(6x39 and 40x24\)"),
        (2, (2, 5, 16), "4 channels, but got 5"),
        (3, (2, 3, 6, 8), "4 channels, but got 3"),
    ],
)
def test_inputs_of_another_size(number: int, shape: tuple[int, ...], expected: str) -> None:
    dense, scale, _ = LAYERS[number]
    with pytest.raises(RuntimeError, match=expected):
        _sparse(dense, scale)(torch.randn(shape))
