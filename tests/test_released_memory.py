"""Tensors whose memory was released raise: a null address is never read as "there is none"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparseinfer import convert_to_sparse, to_dense
from sparseinfer.ops.memory import address, require_memory

CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Linear(64, 64), (4, 64)),
    (lambda: nn.Conv1d(8, 8, 3), (1, 8, 9)),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), (1, 8, 9, 9)),
    (lambda: nn.ConvTranspose1d(8, 8, 3), (1, 8, 9)),
    (lambda: nn.ConvTranspose2d(8, 8, 4, stride=2), (1, 8, 9, 9)),
    (lambda: nn.LSTM(32, 32, 2), (3, 2, 32)),
    (lambda: nn.GRU(32, 32, bidirectional=True), (3, 2, 32)),
    (lambda: nn.RNN(32, 32), (3, 2, 32)),
]


def _release(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def _sparse(make: Callable[[], nn.Module]) -> Any:
    return convert_to_sparse(nn.Sequential(make()), min_speedup=0)[0].eval()  # type: ignore[index]


@pytest.mark.parametrize(("make", "shape"), CASES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_released_bias_raises(make: Any, shape: tuple[int, ...], mode: Any) -> None:
    names = [name for name, _ in _sparse(make).named_parameters() if "bias" in name]
    for name in names:
        layer = _sparse(make)
        _release(layer.get_parameter(name))
        with mode(), pytest.raises(RuntimeError):
            layer(torch.randn(shape))


@pytest.mark.parametrize(("make", "shape"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_released_input_raises(make: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = _sparse(make).to(dtype)
    for strided in (False, True):
        x = torch.randn((*shape[:-1], 2 * shape[-1]), dtype=dtype)[..., : shape[-1]]
        x = x if strided else x.contiguous()
        _release(x)
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"memory of .*input"):
            layer(x)


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_a_released_packed_weight_raises(make: Any, shape: tuple[int, ...]) -> None:
    layer = _sparse(make)
    for module in layer.modules():
        if "packed" in module._buffers:
            # Torch does not resize memory that a kernel has seen.
            module._buffers["packed"] = module._buffers["packed"].clone()
            _release(module._buffers["packed"])
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
        layer(torch.randn(shape))


@pytest.mark.parametrize("role", ["in_proj", "out_proj"])
def test_a_released_bias_of_an_attention_raises(role: str) -> None:
    layer = _sparse(lambda: nn.MultiheadAttention(32, 4))
    _release(layer.get_submodule(role).bias)
    x = torch.randn(3, 2, 32)
    with torch.no_grad(), pytest.raises(RuntimeError, match="memory of bias"):
        layer(x, x, x)


def test_a_released_state_raises() -> None:
    layer = _sparse(lambda: nn.LSTM(32, 32))
    h, c = torch.zeros(1, 2, 32), torch.zeros(1, 2, 32)
    _release(c)
    with torch.no_grad(), pytest.raises(RuntimeError, match="memory of"):
        layer(torch.randn(3, 2, 32), (h, c))


def test_views_and_empty_tensors() -> None:
    whole = torch.zeros(12)
    view, empty = whole[4:], torch.zeros(0)
    assert address(view, "x") == whole.data_ptr() + 16
    assert address(empty, "x") == 0
    require_memory(view=view, empty=empty, none=None)
    _release(whole)
    for check in (lambda: address(view, "view"), lambda: require_memory(view=view)):
        with pytest.raises(RuntimeError, match="expected the memory of view"):
            check()


def test_a_layer_without_a_bias_and_one_whose_memory_is_back() -> None:
    x = torch.randn(4, 64)
    assert _sparse(lambda: nn.Linear(64, 64, bias=False))(x).shape == x.shape
    layer = _sparse(lambda: nn.Linear(64, 64))
    expected, bias = layer(x), layer.bias.detach().clone()
    _release(layer.bias)
    layer.bias.untyped_storage().resize_(256)
    layer.bias.data.copy_(bias)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_mean", "2.weight_ih_l0"])
def test_a_model_with_released_tensors_is_refused(name: str, inplace: bool) -> None:
    layers = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.LSTM(8, 8)
    model = nn.Sequential(*layers).eval()
    model.state_dict()[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"expected the memory of {name} to be allocated"):
        convert_to_sparse(model, min_speedup=0, inplace=inplace)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["bias", "packed"])
def test_a_released_tensor_does_not_come_back_dense(name: str, inplace: bool) -> None:
    sparse = convert_to_sparse(nn.Sequential(nn.Linear(8, 8)), min_speedup=0)
    getattr(sparse[0], name).data.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"expected the memory of 0.{name} to be allocated"):
        to_dense(sparse, inplace=inplace)
