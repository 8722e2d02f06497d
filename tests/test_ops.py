"""torch.ops.sparseinfer.*: what the operators promise beside the numbers of test_conformance.py."""

from __future__ import annotations

import gc
import threading
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from oracle import check_conv, check_linear, sparse_weight
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import pack
from sparseinfer.formats import handles
from sparseinfer.kernels.activations import ACTIVATIONS, activation_module

linear = torch.ops.sparseinfer.linear
conv1d = torch.ops.sparseinfer.conv1d
conv2d = torch.ops.sparseinfer.conv2d


def _problem(m: int = 6, k: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    weight = sparse_weight((m, k), 0.4)
    return weight, pack(weight), torch.randn(m)


def _conv(x: Tensor, packed: Tensor, bias: Tensor | None, m: int, **options: Any) -> Tensor:
    given = {
        "kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1],
        "groups": 1, "padding_mode": "zeros", "activation": "none", "threads": 0, **options,
    }  # fmt: skip
    return conv2d(x, packed, bias, m, **given)


@pytest.mark.parametrize(
    "shape", [(20,), (3, 20), (2, 3, 20), (1, 2, 3, 4, 20), (0, 20), (2, 0, 20)]
)
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    weight, packed, bias = _problem()
    x = torch.randn(shape)
    y = linear(x, packed, bias, 6, "none", 0)
    assert y.is_contiguous()
    check_linear(y, x, weight, bias)


def test_non_contiguous_inputs() -> None:
    weight, packed, _ = _problem()
    base = torch.randn(50, 64)
    for x in (
        base[:, 10:30], base[::2, :20], base[:20].T, base[:, :40:2], base[:1, :20].expand(5, 20),
        base[:48].view(4, 12, 64)[:, 1:5, :20], base.flip(0)[:, :20],
    ):  # fmt: skip
        check_linear(linear(x, packed, None, 6, "none", 0), x, weight)


def test_channels_last_and_strided_images() -> None:
    weight = sparse_weight((8, 4, 3, 3), 0.3)
    packed = pack(weight)
    image = torch.randn(2, 4, 9, 9)
    for x in (image.to(memory_format=torch.channels_last), image[:, :, ::2], image.transpose(2, 3)):
        y = _conv(x, packed, None, 8)
        assert y.is_contiguous()
        check_conv(y, x, weight, None, (1, 1), (1,) * 4, (1, 1), 1)


def test_empty_batches() -> None:
    packed = pack(sparse_weight((8, 4, 3, 3), 0.3))
    assert _conv(torch.zeros(0, 4, 9, 9), packed, None, 8).shape == (0, 8, 9, 9)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.ones(2, 10), r"mat1 and mat2 shapes cannot be multiplied \(2x10 and 20x6\).*; try"),
        (torch.ones(2, 3, 10), r"cannot be multiplied \(6x10 and 20x6\)"),
        (torch.tensor(1.0), "expected an input whose last dimension is 20"),
        (torch.ones(2, 20).double(), "must have the same dtype, but got Double and Float.*; try"),
        (torch.ones(2, 20).half(), "but got Half and Float"),
        (torch.ones(2, 20).long(), "but got Long and Float"),
    ],
)
def test_linear_inputs_that_do_not_fit(x: Tensor, text: str) -> None:
    _, packed, bias = _problem()
    with pytest.raises(RuntimeError, match=text):
        linear(x, packed, bias, 6, "none", 0)


def test_linear_arguments_that_do_not_fit() -> None:
    _, packed, bias = _problem()
    x = torch.ones(2, 20)
    with pytest.raises(RuntimeError, match=r"expected a packed weight of shape \[7, 20\]"):
        linear(x, packed, None, 7, "none", 0)
    with pytest.raises(RuntimeError, match=r"expected a float32 bias of shape \[6\]"):
        linear(x, packed, bias[:5], 6, "none", 0)
    with pytest.raises(RuntimeError, match="expected a float32 bias"):
        linear(x, packed, bias.double(), 6, "none", 0)
    with pytest.raises(ValueError, match=r"activation.*swish"):
        linear(x, packed, bias, 6, "swish", 0)
    with pytest.raises(RuntimeError, match="expected a packed weight of shape"):
        linear(x, pack(torch.ones(6, 4, 5)), None, 6, "none", 0)


@pytest.mark.parametrize(
    ("x", "options", "text"),
    [
        (torch.ones(1, 5, 9, 9), {}, r"to have 4 channels, but got 5 channels instead"),
        (torch.ones(4, 9), {}, r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d"),
        (torch.ones(1, 4, 9, 9).double(), {}, r"Input type \(Double\) and weight type \(Float\)"),
        (torch.ones(1, 4, 1, 1), {"padding": [0] * 4}, "Kernel size can't be greater than"),
        (torch.ones(1, 4, 9, 9), {"stride": [0, 1]}, "non-positive stride"),
        (torch.ones(1, 4, 9, 9), {"padding": [-1, 0, 0, 0]}, "negative padding"),
        (torch.ones(1, 4, 9, 9), {"padding": [1, 1]}, "two paddings an axis"),
        (torch.ones(1, 4, 9, 9), {"groups": 2}, "groups=2"),
        (torch.ones(1, 4, 9, 9), {"groups": 0}, "divisible by groups"),
        (torch.ones(1, 4, 9, 9), {"kernel_size": [3, 5]}, "kernel"),
        (
            torch.ones(1, 4, 2, 9), {"padding": [2, 2, 0, 0], "padding_mode": "reflect"},
            "Padding size should be less than the corresponding input dimension",
        ),
    ],
)  # fmt: skip
def test_convolutions_that_do_not_fit(x: Tensor, options: dict[str, Any], text: str) -> None:
    packed = pack(sparse_weight((8, 4, 3, 3), 0.3))
    with pytest.raises(RuntimeError, match=text):
        _conv(x, packed, None, 8, **options)


def test_unknown_names_in_convolutions() -> None:
    packed, x = pack(sparse_weight((8, 4, 3, 3), 0.3)), torch.ones(1, 4, 9, 9)
    with pytest.raises(ValueError, match="padding_mode"):
        _conv(x, packed, None, 8, padding_mode="wrap")
    with pytest.raises(ValueError, match="activation"):
        _conv(x, packed, None, 8, activation="swish")


# ---- packed buffers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda packed: torch.zeros_like(packed),
        lambda packed: packed[:-1],
        lambda packed: packed[:0],
        lambda packed: packed.view(2, -1),
        lambda packed: packed.to(torch.int32),
        lambda packed: torch.randint(0, 256, packed.shape, dtype=torch.uint8),
    ],
)
def test_hostile_buffers_raise(make: Any) -> None:
    _, packed, _ = _problem()
    with pytest.raises(ValueError, match=r"."):
        linear(torch.ones(2, 20), make(packed), None, 6, "none", 0)


@hypothesis.given(st.integers(0, 10**6), st.integers(1, 255), st.booleans(), st.booleans())
def test_any_changed_byte_raises(position: int, flip: int, inference: bool, strided: bool) -> None:
    packed = pack(sparse_weight((8, 4, 3, 3), 0.3))
    with torch.inference_mode(inference):
        packed = packed.clone()
        if strided:
            packed = packed.repeat_interleave(2)[::2]
        packed[position % packed.numel()] ^= flip
        x = torch.ones(1, 4, 5, 5)
        with pytest.raises(ValueError, match=r"; try"):
            _conv(x, packed, None, 8)
        with pytest.raises(ValueError, match=r"; try"):
            torch.ops.sparseinfer.dense_weight(packed, (8, 4, 3, 3))


def test_a_buffer_without_memory_raises() -> None:
    _, packed, _ = _problem()
    packed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="released"):
        linear(torch.ones(2, 20), packed, None, 6, "none", 0)


@pytest.mark.parametrize("inference", [False, True])
def test_a_change_in_place_is_validated_again(inference: bool) -> None:
    weight, packed, _ = _problem()
    x = torch.randn(2, 20)
    with torch.inference_mode(inference):
        packed = packed.clone()
        check_linear(linear(x, packed, None, 6, "none", 0), x, weight)
        packed[200] ^= 0xFF
        with pytest.raises(ValueError, match=r"."):
            linear(x, packed, None, 6, "none", 0)
        other = sparse_weight((6, 20), 0.4)
        packed.resize_(0)
        packed.resize_(pack(other).numel()).copy_(pack(other))
        check_linear(linear(x, packed, None, 6, "none", 0), x, other)
        packed.data = pack(weight)
        check_linear(linear(x, packed, None, 6, "none", 0), x, weight)


def test_handles_go_with_their_tensors() -> None:
    gc.collect()
    before = len(handles._HANDLES)
    for _ in range(5):
        _, packed, _ = _problem()
        linear(torch.ones(2, 20), packed, None, 6, "none", 0)
    assert len(handles._HANDLES) <= before + 1
    del packed
    assert len(handles._HANDLES) == before


def test_misaligned_and_strided_buffers_are_copied() -> None:
    weight, packed, _ = _problem()
    x = torch.randn(3, 20)
    for offset in (1, 4, 8, 60):
        memory = torch.empty(packed.numel() + 64, dtype=torch.uint8)
        shifted = memory[offset : offset + packed.numel()].copy_(packed)
        check_linear(linear(x, shifted, None, 6, "none", 0), x, weight)
    spread = packed.repeat_interleave(2)[::2]
    check_linear(linear(x, spread, None, 6, "none", 0), x, weight)


def test_many_python_threads_give_the_same_bits() -> None:
    _, packed, bias = _problem(64, 300)
    x = torch.randn(40, 300)
    expected = linear(x, packed, bias, 64, "gelu", 1)
    results: list[bool] = []

    def work() -> None:
        for _ in range(50):
            results.append(torch.equal(linear(x, packed, bias, 64, "gelu", 2), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200 and all(results)


# ---- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_gradients(activation: str) -> None:
    weight, packed, bias = _problem()
    x = torch.randn(2, 5, 20)
    inputs = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
    dense = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
    linear(inputs[0], packed, inputs[1], 6, activation, 0).pow(2).sum().backward()
    activation_module(activation)(F.linear(dense[0], weight, dense[1])).pow(2).sum().backward()
    for ours, theirs in zip(inputs, dense, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_convolution_gradients(mode: str) -> None:
    layer = torch.nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), (1, 2), 2, padding_mode=mode)  # type: ignore[arg-type]
    weight = layer.weight.data = sparse_weight((6, 2, 3, 2), 0.5)
    bias = layer.bias.detach().clone().requires_grad_()
    x = torch.randn(2, 4, 9, 8)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = _conv(
        ours, pack(weight, groups=2), bias, 6, kernel_size=[3, 2], stride=[2, 1],
        padding=[2, 2, 1, 1], dilation=[1, 2], groups=2, padding_mode=mode, activation="silu",
    )  # fmt: skip
    y.pow(2).sum().backward()
    F.silu(layer(theirs)).pow(2).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias.grad, layer.bias.grad, rtol=1e-4, atol=1e-4)


def test_second_derivatives() -> None:
    _, packed, _ = _problem()
    x = torch.randn(2, 20, requires_grad=True)
    y = linear(x, packed, None, 6, "sigmoid", 0)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    assert second.abs().sum() > 0


# ---- compilers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad: bool) -> None:
    _, packed, bias = _problem()
    x = torch.randn(3, 20, requires_grad=grad)
    torch.library.opcheck(linear.default, (x, packed, bias, 6, "gelu", 0))
    torch.library.opcheck(torch.ops.sparseinfer.dense_weight.default, (packed, (6, 20)))
    image = torch.randn(2, 4, 8, 8, requires_grad=grad)
    geometry = ([3, 3], [1, 2], [1, 0, 2, 1], [1, 1], 2, "zeros", "relu", 0)
    args = (image, pack(sparse_weight((6, 2, 3, 3), 0.4), groups=2), bias, 6, *geometry)
    torch.library.opcheck(conv2d.default, args)
    signal = torch.randn(2, 4, 8, requires_grad=grad)
    geometry = ([3], [2], [1, 0], [1], 1, "reflect", "none", 0)
    args = (signal, pack(sparse_weight((6, 4, 3), 0.4)), bias, 6, *geometry)
    torch.library.opcheck(conv1d.default, args)


def test_fake_strides_are_the_real_ones() -> None:
    from torch._subclasses import FakeTensorMode

    _, packed, _ = _problem()
    weight = pack(sparse_weight((8, 4, 3, 3), 0.3))
    image = torch.randn(2, 4, 9, 9).to(memory_format=torch.channels_last)
    x = torch.randn(7, 5, 20).transpose(0, 1)
    real = [linear(x, packed, None, 6, "none", 0), _conv(image, weight, None, 8)]
    with FakeTensorMode() as mode:
        fake = [
            linear(mode.from_tensor(x), mode.from_tensor(packed), None, 6, "none", 0),
            _conv(mode.from_tensor(image), mode.from_tensor(weight), None, 8),
        ]
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.stride(), r.dtype) == (f.shape, f.stride(), f.dtype)
