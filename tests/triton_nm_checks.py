"""What the tests of the Triton N:M kernel run in worker processes: functions of plain values.

Every check draws its problem, packs the weight with a packer of its own, runs the kernel on
`device` (`cpu` means in Triton's interpreter) and asserts. Kernels are imported inside the checks,
because this module is also imported where Triton is not installed.
"""

from __future__ import annotations

import dataclasses
import doctest
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import sparseinfer.kernels.triton as light
from sparseinfer.kernels.triton.nm_planes import NmMeta

DTYPES = ("float32", "float16", "bfloat16")
ONE_QUICK = (DTYPES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in DTYPES[1:]))
"""Triton's interpreter takes a second a test, so that most of its types are of the slow tests."""
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu,
    "relu6": torch.nn.functional.relu6,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
EPS32 = 2.0**-24  # unit roundoff of float32
# Rounding of the output. The interpreter truncates to bfloat16 where a GPU rounds to nearest.
EPS_OUT = {"float32": EPS32, "float16": 2.0**-11, "bfloat16": 2.0**-7}
TINY = {"float32": 2.0**-149, "float16": 2.0**-25, "bfloat16": 2.0**-133}


def pack_nm(weight: torch.Tensor, n: int, dtype: str) -> tuple[torch.Tensor, NmMeta]:
    """An N:4 weight's planes amid bytes of 0xFF, which a kernel that strays would read as NaN."""
    rows, columns = weight.shape
    groups = -(-columns // 4)
    padded = torch.zeros(rows, groups * 4, dtype=weight.dtype)
    padded[:, :columns] = weight
    lanes = padded.reshape(rows, groups, 4)
    kept_first = np.argsort((lanes == 0).numpy(), axis=-1, kind="stable")
    positions = torch.from_numpy(np.sort(kept_first[..., :n], axis=-1))
    values = lanes.gather(-1, positions).permute(2, 0, 1).flatten().clone()
    value_bytes = values.to(getattr(torch, dtype)).view(torch.uint8)
    position_bytes = positions.permute(2, 0, 1).reshape(-1).to(torch.uint8)
    at = 128 + -(-value_bytes.numel() // 64) * 64
    packed = torch.full((at + position_bytes.numel() + 64,), 0xFF, dtype=torch.uint8)
    packed[128 : 128 + value_bytes.numel()] = value_bytes
    packed[at : at + position_bytes.numel()] = position_bytes
    return packed, NmMeta(rows, columns, n, 4, getattr(torch, dtype), values=128, positions=at)


def prune_nm(weight: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Keeps up to n random entries of every group of four columns, in some groups fewer."""
    rows, columns = weight.shape
    groups = -(-columns // 4)
    rank = torch.rand(rows, groups, 4, generator=generator).argsort(-1).argsort(-1)
    keep = (rank < n) & (torch.rand(rows, groups, 4, generator=generator) < 0.9)
    return weight * keep.reshape(rows, groups * 4)[:, :columns]


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    *,
    n: int = 2,
    device: str = "cpu",
) -> torch.Tensor:
    from sparseinfer.kernels.triton.nm_linear import nm_linear

    packed, meta = pack_nm(weight, n, str(x.dtype).removeprefix("torch."))
    bias = None if bias is None else bias.to(device)
    y = nm_linear(x.to(device), packed.to(device), bias, len(weight), activation, meta=meta)
    assert y.dtype == x.dtype and y.device.type == device and y.is_contiguous()
    return y.cpu()


def assert_within(
    got: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
) -> None:
    """|y - y64| <= c K eps (|W| |x| + |bias|) through the activation, and the output's rounding."""
    dtype = str(got.dtype).removeprefix("torch.")
    b = torch.zeros(len(weight)) if bias is None else bias
    x64, w64, b64 = x.double(), weight.to(x.dtype).double(), b.double()
    before = x64 @ w64.T + b64
    expected = ACTIVATIONS[activation](before)
    scale = x64.abs() @ w64.abs().T + b64.abs()
    # No slope exceeds 1.13, and an activation's own arithmetic adds a few roundings.
    bound = 1.13 * (x.shape[-1] + 2) * EPS32 * scale + 8 * EPS32 * (before.abs() + expected.abs())
    bound = bound + EPS_OUT[dtype] * expected.abs() + TINY[dtype]
    excess = ((got.double() - expected).abs() - bound).max().item()
    assert excess <= 0, f"beyond the float64 bound by {excess}"


def check_oracle(
    dtype: str, shape: tuple[int, int, int], activation: str, biased: bool, n: int, device: str
) -> None:
    tokens, rows, columns = shape
    generator = torch.Generator().manual_seed(7)
    torch_dtype = getattr(torch, dtype)
    weight = prune_nm(torch.randn(rows, columns, generator=generator), n, generator)
    x = torch.randn(tokens, columns, generator=generator).to(torch_dtype)
    bias = torch.randn(rows, generator=generator).to(torch_dtype) if biased else None
    y = run(x, weight, bias, activation, n=n, device=device)
    assert y.shape == (tokens, rows)
    if y.numel():
        assert_within(y, x, weight, bias, activation)


def check_integers(dtype: str, shape: tuple[int, int, int], n: int, device: str) -> None:
    tokens, rows, columns = shape
    generator = torch.Generator().manual_seed(11)
    # Sums stay below 2^8, which bfloat16 still counts exactly.
    low, high = (-1, 2) if columns > 32 else (-2, 3)
    torch_dtype = getattr(torch, dtype)

    def draw(*size: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=generator).float()

    weight = prune_nm(draw(rows, columns), n, generator)
    x, bias = draw(tokens, columns), draw(rows)
    y = run(x.to(torch_dtype), weight, bias.to(torch_dtype), n=n, device=device)
    expected = x.double() @ weight.double().T + bias.double()
    assert (expected.abs() < 256).all()
    assert torch.equal(y.double(), expected)


def check_activation_curve(dtype: str, activation: str, device: str) -> None:
    # One weight of 1 and K = 1: y is the activation of x alone.
    steps = torch.linspace(-12, 12, 97)
    special = torch.tensor([0.0, -0.0, 1e-3, -1e-3, 0.62, -0.63, 100.0, -100.0, 3e4, -3e4])
    x = torch.cat([steps, special]).to(getattr(torch, dtype))[:, None]
    y = run(x, torch.ones(1, 1), None, activation, device=device)
    assert_within(y, x, torch.ones(1, 1), None, activation)
    nonfinite = torch.tensor([[float("nan")], [float("inf")], [float("-inf")]], dtype=x.dtype)
    got = run(nonfinite, torch.ones(1, 1), None, activation, device=device).double()
    expected = ACTIVATIONS[activation](nonfinite.double())
    # x times erf or sigmoid at -inf is -inf * 0, NaN or its limit 0 depending on the formula.
    same = torch.isclose(got, expected, equal_nan=True, atol=EPS32)
    assert same[:2].all(), (got, expected)
    assert same[2].all() or activation in ("gelu", "gelu_tanh", "silu"), (got, expected)


def check_nonfinite_and_zeros(dtype: str, device: str) -> None:
    torch_dtype = getattr(torch, dtype)
    weight = torch.zeros(5, 7)
    weight[0, 6], weight[1, 2], weight[2, 0], weight[3, 5] = float("nan"), float("inf"), -0.0, 2.0
    x = torch.ones(3, 7, dtype=torch_dtype)
    y = run(x, weight, device=device)
    assert y[:, 0].isnan().all(), "a NaN weight reaches its row"
    assert (y[:, 1] == float("inf")).all(), "an infinite weight reaches its row"
    assert torch.equal(y[:, 2:].double(), torch.tensor([[0.0, 2.0, 0.0]] * 3).double())
    x[1, 5] = float("nan")
    y = run(x, weight.nan_to_num(0, posinf=0), device=device)
    assert y[1, 3].isnan(), "a NaN input under a kept weight reaches its output"
    assert torch.equal(y[[0, 2]].double(), torch.tensor([[0.0, 0.0, 0.0, 2.0, 0.0]] * 2).double())
    # A stored -0.0 is a value like another: nothing may turn it into NaN or move it.
    weight = torch.full((2, 4), -0.0)
    packed, meta = pack_nm(weight, 2, dtype)
    packed[meta.values : meta.values + 4 * torch_dtype.itemsize] = torch.full(
        (4,), -0.0, dtype=torch_dtype
    ).view(torch.uint8)
    from sparseinfer.kernels.triton.nm_linear import nm_linear

    ones = torch.ones(1, 4, dtype=torch_dtype, device=device)
    y = nm_linear(ones, packed.to(device), None, 2, "none", meta=meta)
    assert (y == 0).all()


def check_layouts(dtype: str, device: str) -> None:
    from sparseinfer.kernels.triton.nm_linear import nm_linear

    generator = torch.Generator().manual_seed(3)
    weight = prune_nm(torch.randn(9, 10, generator=generator), 2, generator)
    torch_dtype = getattr(torch, dtype)
    base = torch.randn(40, 40, generator=generator).to(torch_dtype)
    layouts = {
        "transposed": base[:10, :6].T,
        "strided columns": base[:6, :30:3],
        "strided rows": base[:12:2, :10],
        "misaligned": base.reshape(-1)[1:61].reshape(6, 10),
        "expanded": base[:1, :10].expand(6, 10),
        "vector": base[0, :10],
        "three dimensions": base[:6, :40].reshape(6, 4, 10),
        "permuted dimensions": base[:6, :40].reshape(4, 6, 10).transpose(0, 1),
        "no leading tokens": base[:0, :10].reshape(3, 0, 10),
    }
    for name, x in layouts.items():
        y = run(x, weight, device=device)
        assert y.shape == (*x.shape[:-1], 9), name
        if y.numel():
            assert_within(y, x, weight, None, "none")
    x, spread_bias = base[:6, :10], base[:9, 0]
    assert_within(run(x, weight, spread_bias, device=device), x, weight, spread_bias, "none")
    # The buffer may itself be a slice; a slice that breaks the values' alignment is refused.
    packed, meta = pack_nm(weight, 2, dtype)
    shifted = torch.cat([torch.zeros(64, dtype=torch.uint8), packed])[64:]
    y = nm_linear(x.to(device), shifted.to(device), None, 9, "none", meta=meta)
    assert_within(y.cpu(), x, weight, None, "none")
    odd = torch.cat([torch.zeros(1, dtype=torch.uint8), packed]).to(device)[1:]
    with pytest.raises(ValueError, match=r"expected values at a multiple .* try packed.clone\(\)"):
        nm_linear(x.to(device), odd, None, 9, "none", meta=meta)
    # Degenerate layers: no outputs, no inputs.
    assert run(x, weight[:0], device=device).shape == (6, 0)
    no_columns = run(x[:, :0], weight[:, :0], spread_bias, "relu", device=device)
    assert torch.equal(no_columns, torch.relu(spread_bias).expand(6, 9))


def check_splits(dtype: str, tokens: int, device: str) -> None:
    """Any number of programs along K: within the bound, the same bits in every run, and exact on
    integers."""
    from sparseinfer.kernels.triton.nm_linear import nm_linear

    generator = torch.Generator().manual_seed(2)
    weight = prune_nm(torch.randn(7, 1800, generator=generator), 2, generator)
    x = torch.randn(tokens, 1800, generator=generator).to(getattr(torch, dtype))
    bias = torch.randn(7, generator=generator).to(x.dtype)
    packed, meta = pack_nm(weight, 2, dtype)
    whole, ones = (weight != 0).float(), torch.ones(tokens, 1800, dtype=x.dtype)
    ones[:, ::2] = -1
    counted, _ = pack_nm(whole, 2, dtype)
    exact = ones.double() @ whole.double().T
    for sms in (0, 1, 132):
        layout = dataclasses.replace(meta, sms=sms)
        tensors = x.to(device), packed.to(device), bias.to(device)
        runs = [nm_linear(*tensors, 7, "silu", meta=layout).cpu() for _ in range(2)]
        assert torch.equal(*runs), sms
        assert_within(runs[0], x, weight, bias, "silu")
        y = nm_linear(ones.to(device), counted.to(device), None, 7, "none", meta=layout).cpu()
        assert torch.equal(y, exact.to(x.dtype)), sms


def check_graph(dtype: str) -> None:
    """A CUDA graph of a call replays it on new input: no synchronisation, nothing on the host."""
    from sparseinfer.kernels.triton.nm_linear import nm_linear

    generator = torch.Generator().manual_seed(2)
    weight = prune_nm(torch.randn(70, 1800, generator=generator), 2, generator)
    packed, meta = pack_nm(weight, 2, dtype)
    packed = packed.cuda()
    for tokens in (1, 3):
        x = torch.zeros(tokens, 1800, dtype=getattr(torch, dtype), device="cuda")
        nm_linear(x, packed, None, 70, "none", meta=meta)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = nm_linear(x, packed, None, 70, "none", meta=meta)
        x.normal_()
        graph.replay()
        assert_within(y.cpu(), x.cpu(), weight, None, "none")


def check_lane_plane_is_kept() -> None:
    """It is made once a buffer, and anew for another one."""
    from sparseinfer.kernels.triton.nm_linear import nm_linear

    one, two = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0, 0, 0, 1.0]])
    first, meta = pack_nm(one, 2, "float32")
    second, _ = pack_nm(two, 2, "float32")
    x = torch.arange(4.0)[None]
    assert nm_linear(x, first, None, 1, "none", meta=meta).item() == 0
    first[meta.positions : meta.positions + 2] = torch.tensor([2, 3], dtype=torch.uint8)
    assert nm_linear(x, first, None, 1, "none", meta=meta).item() == 0, "kept"
    assert nm_linear(x, second, None, 1, "none", meta=meta).item() == 3, "another buffer"


def check_errors() -> None:
    from sparseinfer.kernels.triton.nm_linear import nm_linear

    weight = torch.ones(3, 8) * torch.tensor([1.0, 0, 1, 0, 0, 1, 0, 1])
    packed, meta = pack_nm(weight, 2, "float32")
    x = torch.ones(2, 8)

    def refused(kind: type[Exception], match: str, **changed: Any) -> None:
        arguments = {"x": x, "packed": packed, "bias": None, "out_features": 3} | changed
        activation, layout = arguments.pop("activation", "none"), arguments.pop("meta", meta)
        with pytest.raises(kind, match=match):
            nm_linear(**arguments, activation=activation, meta=layout)

    devices = r"Expected all tensors to be on the same device, but got .*; try input.to"
    refused(RuntimeError, devices + r"\('cpu'\)", x=x.to("meta"))
    refused(RuntimeError, devices + r"\('meta'\)", packed=packed.to("meta"))
    refused(RuntimeError, devices, bias=torch.ones(3, device="meta"))
    refused(RuntimeError, "need to be at least 1D, but they are 0D and 2D", x=torch.tensor(1.0))
    refused(
        RuntimeError, "mat1 and mat2 must have the same dtype, but got torch.float16", x=x.half()
    )
    refused(RuntimeError, r"cannot be multiplied \(2x7 and 8x3\): expected 8 .* got 7", x=x[:, :7])
    refused(RuntimeError, "bias and input to have the same dtype", bias=torch.ones(3).half())
    refused(RuntimeError, r"expected bias of shape \(3,\), got \(4,\)", bias=torch.ones(4))
    refused(
        ValueError, "expected activation to be one of none, relu, .* got 'mish'", activation="mish"
    )
    refused(ValueError, "expected the packed weight as contiguous 1-D uint8", packed=packed.float())
    refused(ValueError, "expected the packed weight as contiguous", packed=packed[None])
    refused(RuntimeError, "out_features of the packed weight, 3, got 2", out_features=2)
    refused(ValueError, "expected a packed weight of at least", packed=packed[:-70])
    eight = NmMeta(3, 8, 4, 8, torch.float32, meta.values, meta.positions)
    refused(
        RuntimeError, "nm.linear.triton cannot run .* got 4:8; try packing with n=2", meta=eight
    )


def check_cpu_tensors_without_interpreter() -> None:
    from sparseinfer.kernels.triton.nm_linear import nm_linear

    packed, meta = pack_nm(torch.ones(1, 1), 2, "float32")
    with pytest.raises(RuntimeError, match="expected a CUDA device, got cpu; try moving"):
        nm_linear(torch.ones(1, 1), packed, None, 1, "none", meta=meta)
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        with pytest.raises(RuntimeError, match="got it afterwards with tensors on cpu"):
            nm_linear(torch.ones(1, 1), packed, None, 1, "none", meta=meta)
    finally:
        os.environ["TRITON_INTERPRET"] = "0"


def check_examples() -> None:
    from sparseinfer.kernels.triton import arguments, derived, nm_lanes, nm_linear, split_sum

    for module in (light, arguments, derived, nm_lanes, nm_linear, split_sum):
        result = doctest.testmod(module, extraglobs={"torch": torch})
        assert result.attempted and not result.failed, result


def check_native_buffer(dtype: str, n: int) -> None:
    """A buffer of the native packer gives the very numbers of one of this file's packer."""
    from sparseinfer import _C
    from sparseinfer.formats import info
    from sparseinfer.kernels.triton.nm_linear import nm_linear

    generator = torch.Generator().manual_seed(5)
    weight = prune_nm(torch.randn(13, 27, generator=generator), n, generator)
    x = torch.randn(5, 27, generator=generator).to(getattr(torch, dtype))
    packed = torch.from_numpy(_C.pack("nm", weight.numpy(), n=n, m=4, value_type=dtype))
    meta = NmMeta.from_info(info(packed))
    y = nm_linear(x, packed, None, 13, "silu", meta=meta)
    assert torch.equal(y, run(x, weight, None, "silu", n=n))
    assert_within(y, x, weight, None, "silu")


def check_module(dtype: str, device: str) -> None:
    """SparseLinear of an nm weight gives on `device` the kernel's numbers within the bound.

    Under the interpreter the tensors are the CPU's, where the module runs a native row: there the
    CUDA implementation of its operator is called, and the module is the second opinion.
    """
    from sparseinfer.layers.linear_conv import SparseLinear
    from sparseinfer.ops.run_linear import linear_cuda

    generator = torch.Generator().manual_seed(9)
    dense = torch.nn.Linear(45, 22)
    with torch.no_grad():
        dense.weight.copy_(prune_nm(torch.randn(22, 45, generator=generator), 2, generator))
    sparse = SparseLinear.from_dense(dense, "nm", "gelu", n=2, m=4, weights=dtype)
    sparse = sparse.to(device=device, dtype=getattr(torch, dtype))
    x = torch.randn(3, 7, 45, generator=generator).to(getattr(torch, dtype))
    with torch.no_grad():
        if device == "cuda":
            y = sparse(x.cuda()).cpu()
        else:
            y = linear_cuda(x, sparse.packed, sparse.bias, 22, "gelu")
    assert sparse.bias is not None
    bias = sparse.bias.detach().cpu()
    assert_within(y, x, dense.weight.detach(), bias, "gelu")
    if device == "cpu" and dtype == "float32":
        assert_within(sparse(x).detach(), x, dense.weight.detach(), bias, "gelu")


def compile_ahead(
    capability: int, dtype: str, bucket: int, activation: str, n: int, ragged: bool
) -> None:
    """Compiles one configuration down to machine code, specialised as a launch would do it.

    Whole, with the bias and the activation in it; and split, as partial sums, with their sum.
    """
    from sparseinfer.kernels.triton.nm_lanes import HALF
    from sparseinfer.kernels.triton.nm_linear import config_for, nm_linear_kernel
    from sparseinfer.kernels.triton.nm_vector import nm_vector_kernel
    from sparseinfer.kernels.triton.split_sum import BLOCK, split_sum_kernel

    config = config_for(bucket, getattr(torch, dtype))
    kernel = nm_linear_kernel if config.block_n else nm_vector_kernel
    element = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype]
    whole: dict[str, Any] = {
        "KEPT": n,
        "HAS_BIAS": True,
        "ACTIVATION": activation,
        "SPLIT": False,
        "HALF": HALF,
        "BLOCK_M": config.block_m,
        "BLOCK_C": config.block_c,
    }
    if config.block_n:
        whole |= {"DOT_IN_FP32": False, "BLOCK_N": config.block_n, "stride_xk": 1}
    else:
        whole |= {"stride_x": 1}
    types = {f"{name}_ptr": element for name in ("x", "values", "bias", "y")} | {"lanes_ptr": "u8"}
    unit = ("M", "G", "plane", "steps", "each") if ragged else ()
    aligned = ("M", "K", "G", "C", "plane", "stride_xn")
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compile_one(kernel, capability, types, whole, unit, () if ragged else aligned, options)
    if bucket > 2:
        return
    split = whole | {"SPLIT": True, "HAS_BIAS": False, "ACTIVATION": "none"}
    partial = types | {"y_ptr": "fp32"}
    compile_one(kernel, capability, partial, split, unit, () if ragged else aligned, options)
    finish = {"HAS_BIAS": True, "ACTIVATION": activation, "BLOCK": BLOCK}
    types = {"partials_ptr": "fp32", "bias_ptr": element, "y_ptr": element}
    aligned = () if ragged else ("M",)
    compile_one(split_sum_kernel, capability, types, finish, (), aligned, {"num_warps": 4})


def compile_one(
    kernel: Any,
    capability: int,
    types: dict[str, str],
    constants: dict[str, Any],
    unit: Sequence[str],
    aligned: Sequence[str],
    options: dict[str, int],
) -> None:
    """Compiles `kernel` for pointers of `types`, with the arguments in `unit` equal to 1 and the
    pointers and those in `aligned` divisible by 16; all others are 32-bit integers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    constants = constants | dict.fromkeys(unit, 1)
    signature = dict.fromkeys(names, "i32") | {name: f"*{type}" for name, type in types.items()}
    signature |= dict.fromkeys(constants, "constexpr")
    divisible = [name for name in names if name in (*types, *aligned) and name not in constants]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes if aligned else {}),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    assert compiled.asm["cubin"]
    # What a block may use on the smallest GPU of the family: 8.6 and 8.9 also run sm_80 code.
    limit = {80: 99, 90: 227}[capability] * 1024
    assert compiled.metadata.shared <= limit, f"{compiled.metadata.shared} bytes of shared memory"
