"""What the tests of the Triton csr kernel run in worker processes: functions of plain values.

As triton_nm_checks.py, whose bound, activations and compiler call are used here.
"""

from __future__ import annotations

import dataclasses
import doctest
from typing import Any

import pytest
import torch
from triton_nm_checks import assert_within, compile_one

from sparseinfer import formats
from sparseinfer.kernels.triton.csr_rows import CsrMeta


def draw(rows: int, columns: int, density: float, *, integers: bool = False) -> torch.Tensor:
    """A random weight; of more than two rows the first is full and the second is empty."""
    torch.manual_seed(rows + columns)
    weight = (
        torch.randint(-2, 3, (rows, columns)).float() if integers else torch.randn(rows, columns)
    )
    mask = torch.rand(rows, columns) < density
    if rows > 2:
        mask[0], mask[1] = True, False
    return weight * mask


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    *,
    device: str = "cpu",
    sms: int = 132,
) -> torch.Tensor:
    from sparseinfer.kernels.triton.csr_linear import csr_linear

    packed = formats.pack(weight, "csr")
    meta = CsrMeta.from_info(formats.info(packed), sms)
    bias = None if bias is None else bias.to(device)
    y = csr_linear(x.to(device), packed.to(device), bias, len(weight), activation, meta=meta)
    assert y.dtype == x.dtype and y.device.type == device and y.is_contiguous()
    return y.cpu()


def check_oracle(
    dtype: str,
    shape: tuple[int, int, int],
    density: float,
    activation: str,
    biased: bool,
    device: str,
) -> None:
    tokens, rows, columns = shape
    weight = draw(rows, columns, density)
    x = torch.randn(tokens, columns).to(getattr(torch, dtype))
    bias = torch.randn(rows).to(x.dtype) if biased else None
    y = run(x, weight, bias, activation, device=device)
    assert y.shape == (tokens, rows)
    if y.numel():
        assert_within(y, x, weight, bias, activation)


def check_integers(dtype: str, shape: tuple[int, int, int], device: str) -> None:
    tokens, rows, columns = shape
    weight = draw(rows, columns, 0.2, integers=True)
    x = torch.randint(-1, 2, (tokens, columns)).to(getattr(torch, dtype))
    expected = x.double() @ weight.double().T
    assert not expected.numel() or expected.abs().max() < 256  # bfloat16 counts so far
    assert torch.equal(run(x, weight, device=device).double(), expected)


def check_cut_rows(dtype: str, tokens: int, device: str) -> None:
    """Rows cut among any number of programs: within the bound, and the same bits in every run."""
    from sparseinfer.kernels.triton.csr_rows import csr_rows

    weight = draw(19, 2100, 0.05)
    x = torch.randn(tokens, 2100).to(getattr(torch, dtype))
    bias = torch.randn(19).to(x.dtype)
    csr = weight.to_sparse_csr()
    for sms, cut in ((0, False), (132, True)):
        made = csr_rows(csr.crow_indices(), csr.col_indices(), csr.values(), 2100, x.dtype, sms)
        assert bool(made.cut_units) == cut
        runs = [run(x, weight, bias, "silu", device=device, sms=sms) for _ in range(2)]
        assert torch.equal(*runs)
        assert_within(runs[0], x, weight, bias, "silu")


def check_nonfinite_and_zeros(dtype: str, device: str) -> None:
    weight = torch.zeros(5, 7)
    weight[0, 6], weight[1, 2], weight[2, 0], weight[3, 5] = float("nan"), float("inf"), -0.0, 2.0
    for tokens in (1, 3):
        x = torch.ones(tokens, 7, dtype=getattr(torch, dtype))
        y = run(x, weight, device=device)
        assert y[:, 0].isnan().all() and (y[:, 1] == float("inf")).all()
        assert torch.equal(y[:, 2:].float(), torch.tensor([[0.0, 2.0, 0.0]]).expand(tokens, 3))
        # Column 0 is what fills rows up: an infinite x there belongs to none of them.
        x[:, 0], x[0, 5] = float("inf"), float("nan")
        y = run(x, weight.nan_to_num(0, posinf=0), device=device)
        assert y[0, 3].isnan() and (y[0, [0, 1, 2, 4]] == 0).all() and (y[1:, 3] == 2).all()


def check_layouts(dtype: str, device: str) -> None:
    from sparseinfer.kernels.triton.csr_linear import csr_linear

    weight = draw(9, 10, 0.3)
    base = torch.randn(40, 40).to(getattr(torch, dtype))
    layouts = {
        "transposed": base[:10, :6].T,
        "strided columns": base[:6, :30:3],
        "misaligned": base.reshape(-1)[1:61].reshape(6, 10),
        "expanded": base[:1, :10].expand(6, 10),
        "vector": base[0, :10],
        "strided vector": base[:10, 0],
        "three dimensions": base[:6, :40].reshape(6, 4, 10),
        "no leading tokens": base[:0, :10].reshape(3, 0, 10),
    }
    for name, x in layouts.items():
        y = run(x, weight, base[:9, 1], device=device)
        assert y.shape == (*x.shape[:-1], 9), name
        if y.numel():
            assert_within(y, x, weight, base[:9, 1], "none")
    x, packed = base[:6, :10].to(device), formats.pack(weight, "csr").to(device)
    meta = CsrMeta.from_info(formats.info(packed))
    shifted = torch.cat([packed[:64], packed])[64:]
    assert_within(csr_linear(x, shifted, None, 9, meta=meta).cpu(), x.cpu(), weight, None, "none")
    odd = torch.cat([packed[:1], packed])[1:]
    with pytest.raises(ValueError, match=r"expected values at a multiple .* try packed.clone\(\)"):
        csr_linear(x, odd, None, 9, meta=meta)


def check_errors() -> None:
    from sparseinfer.kernels.triton.csr_linear import csr_linear

    packed = formats.pack(torch.eye(8), "csr")
    meta = CsrMeta.from_info(formats.info(packed))
    x = torch.ones(2, 8)

    def refused(kind: type[Exception], match: str, **changed: Any) -> None:
        arguments = {"x": x, "packed": packed, "bias": None, "out_features": 8, "meta": meta}
        with pytest.raises(kind, match=match):
            csr_linear(**(arguments | changed))

    refused(RuntimeError, "Expected all tensors to be on the same device", x=x.to("meta"))
    refused(RuntimeError, "need to be at least 1D", x=torch.tensor(1.0))
    refused(RuntimeError, "csr.linear.triton cannot run .* got float64", x=x.double())
    refused(RuntimeError, r"cannot be multiplied \(2x7 and 8x8\): expected 8 .* got 7", x=x[:, :7])
    refused(RuntimeError, "out_features of the packed weight, 8, got 2", out_features=2)
    refused(RuntimeError, "bias and input to have the same dtype", bias=torch.ones(8).half())
    refused(RuntimeError, r"expected bias of shape \(8,\), got \(4,\)", bias=torch.ones(4))
    refused(ValueError, "expected activation to be one of none, relu, .*", activation="mish")
    refused(ValueError, "expected the packed weight as contiguous 1-D uint8", packed=packed[None])
    refused(ValueError, "expected a packed weight of at least", packed=packed[:300])
    nm = formats.info(formats.pack(torch.eye(8), "nm"))
    with pytest.raises(ValueError, match="expected a packed buffer in the csr format, got nm"):
        CsrMeta.from_info(nm)


def check_operator(dtype: str, device: str) -> None:
    """What a module calls on a GPU: the row is found, and its layout of the rows is kept."""
    from sparseinfer.formats.handles import open_packed
    from sparseinfer.ops.run_linear import linear_cuda

    weight = draw(22, 45, 0.2)
    packed = formats.pack(weight, "csr").to(device)
    x = torch.randn(3, 7, 45).to(getattr(torch, dtype))
    y = linear_cuda(x.to(device), packed, None, 22, "gelu")
    assert_within(y.cpu(), x, weight, None, "gelu")
    handle = open_packed(packed)
    first = handle.meta(CsrMeta.from_info).derived.get(packed, x.dtype, lambda: None)
    linear_cuda(x.to(device), packed, None, 22, "gelu")
    again = handle.meta(CsrMeta.from_info).derived.get(packed, x.dtype, lambda: None)
    assert first is not None and first is again


def check_graph(dtype: str) -> None:
    """A CUDA graph of a call replays it on new input, rows cut or not."""
    from sparseinfer.kernels.triton.csr_linear import csr_linear

    weight = draw(19, 2100, 0.05)
    packed = formats.pack(weight, "csr").cuda()
    meta = CsrMeta.from_info(formats.info(packed))
    for tokens, sms in ((1, 132), (3, 0)):
        layout = dataclasses.replace(meta, sms=sms)
        x = torch.zeros(tokens, 2100, dtype=getattr(torch, dtype), device="cuda")
        csr_linear(x, packed, None, 19, meta=layout)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = csr_linear(x, packed, None, 19, meta=layout)
        x.normal_()
        graph.replay()
        assert_within(y.cpu(), x.cpu(), weight, None, "none")


def check_examples() -> None:
    from sparseinfer.kernels.triton import csr_linear, csr_rows

    for module in (csr_linear, csr_rows):
        result = doctest.testmod(module, extraglobs={"torch": torch})
        assert result.attempted and not result.failed, result


def compile_ahead(capability: int, dtype: str, block: int, activation: str, narrow: bool) -> None:
    """Compiles both kernels of one block of tokens down to machine code."""
    from sparseinfer.kernels.triton.csr_linear import (
        BLOCK_ENTRIES,
        NUM_WARPS,
        csr_cuts_kernel,
        csr_linear_kernel,
    )
    from sparseinfer.kernels.triton.csr_rows import ALIGN, SLICE_ROWS

    element = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype]
    types = {f"{name}_ptr": element for name in ("x", "values", "bias", "y")}
    types |= {f"{name}_ptr": "i32" for name in ("order", "starts", "lengths", "units")}
    types |= {"columns_ptr": "i16" if narrow else "i32", "partials_ptr": "fp32"}
    fused = {"HAS_BIAS": True, "ACTIVATION": activation, "ROWS": SLICE_ROWS, "BLOCK_N": block}
    whole = fused | {"NARROW": narrow, "ALIGN": ALIGN, "BLOCK_E": BLOCK_ENTRIES[block]}
    options = {"num_warps": NUM_WARPS}
    compile_one(csr_linear_kernel, capability, types, whole, (), ("M",), options)
    types = {name: types[name] for name in ("partials_ptr", "order_ptr", "bias_ptr", "y_ptr")}
    types |= {"cuts_ptr": "i32"}
    compile_one(csr_cuts_kernel, capability, types, fused, (), ("M",), options)
