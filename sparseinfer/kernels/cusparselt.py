"""2:4 linear through torch's cuSPARSELt, for prompts: it runs on the sparse matrix instructions.

torch ships the library. Measured by others on an H100, it overtakes cuBLAS from about 512 tokens
on and loses below that. The buffer stays the nm one; cuSPARSELt's own form of the weight is made
from it on the device, once, and the algorithm is searched where a layer is prepared (`search`),
never in a call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparseinfer.kernels.activations import activation_module
from sparseinfer.kernels.limits import cuda_reasons
from sparseinfer.kernels.row import Problem, Row
from sparseinfer.kernels.triton.arguments import check_linear, section
from sparseinfer.kernels.triton.nm_planes import NmMeta

__all__ = ["MIN_TOKENS", "ROW", "cusparselt_linear", "limits", "search"]

MIN_TOKENS = 256
"""Below, the library pads and plans for longer than it multiplies."""

WEIGHT_MULTIPLE = 16
TOKENS_MULTIPLE = 8
_ALGORITHMS: dict[tuple[object, ...], int] = {}
"""What `search` found, by plan: the copies of a layer, and all layers of its shape, share it."""

DTYPES = (torch.float16, torch.bfloat16)


def limits(problem: Problem) -> list[str]:
    """Why the `nm.linear.cusparselt` row cannot run such a problem; empty when it can.

    Example:
        >>> limits(Problem("linear", "nm", torch.device("cuda"), torch.float16, 64, 64, N=8))[-1]
        'expected at least 256 tokens, got 8; try the nm.linear.triton row'
    """
    reasons = cuda_reasons(problem.device)
    backend = getattr(torch.backends, "cusparselt", None)
    if backend is None or not backend.is_available():
        reasons.append(
            f"expected a torch with cuSPARSELt, got torch {torch.__version__} without it; "
            "try a CUDA build of torch 2.6 or later"
        )
    if problem.m != 4 or not 1 <= problem.n <= 2:
        reasons.append(
            f"expected 1:4 or 2:4 weights, got {problem.n}:{problem.m}; try packing with n=2, m=4"
        )
    if problem.dtype not in DTYPES:
        got = str(problem.dtype).removeprefix("torch.")
        reasons.append(f"expected float16 or bfloat16, got {got}; try model.bfloat16()")
    if problem.M % WEIGHT_MULTIPLE or problem.K % WEIGHT_MULTIPLE:
        reasons.append(
            f"expected rows and columns in multiples of {WEIGHT_MULTIPLE}, got {problem.M}x"
            f"{problem.K}; "
            "try the nm.linear.triton row"
        )
    if problem.N < MIN_TOKENS:
        reasons.append(
            f"expected at least {MIN_TOKENS} tokens, got {problem.N}; try the nm.linear.triton row"
        )
    return reasons


def search(packed: Tensor, meta: NmMeta, tokens: int, biased: bool = False) -> int:
    """Find cuSPARSELt's fastest algorithm for N = `tokens`, and keep it for calls of like N.

    It runs them all and waits for them: call it where a layer is prepared. Returns its number, at
    once where a weight of this shape and type has been searched for on this device.

    Raises:
        RuntimeError: torch's cuSPARSELt refuses the problem.

    Example (needs a GPU whose torch has cuSPARSELt):
        >>> search(packed, meta, tokens=1024)  # doctest: +SKIP
        1
    """
    plan = _plan(packed, meta, tokens, biased)
    if plan in _ALGORITHMS:
        return _ALGORITHMS[plan]
    padded = tokens + -tokens % TOKENS_MULTIPLE
    x = torch.zeros(padded, meta.in_features, dtype=meta.dtype, device=packed.device)
    bias = x.new_zeros(meta.out_features) if biased else None
    _ALGORITHMS[plan] = torch._cslt_sparse_mm_search(
        _compressed(packed, meta), x.t(), bias=bias, transpose_result=True
    )
    return _ALGORITHMS[plan]


def cusparselt_linear(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str = "none",
    *,
    meta: NmMeta,
) -> Tensor:
    """Linear layer act(x W^T + bias) on a CUDA device, a 2:4 W on the sparse matrix instructions.

    Products and sums are cuSPARSELt's; the activation is a second kernel, on the rounded output.
    Without a `search` for like N the library's default algorithm runs.

    Args:
        x: input [..., K] of the packed values' type, float16 or bfloat16, any strides.
        packed: the packed buffer, contiguous uint8 [bytes].
        bias: [M] of x's type, or None.
        out_features: M.
        activation: none, relu, relu6, gelu, gelu_tanh, silu, sigmoid or tanh.
        meta: where the planes lie in `packed`; `NmMeta.from_info(formats.info(packed))`.

    Returns:
        y [..., M], contiguous, of x's type.

    Raises:
        RuntimeError: as `sparseinfer.kernels.triton.nm_linear.nm_linear`, for the reasons of
            `limits` here.
        ValueError: as there.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.

    Example (needs a GPU whose torch has cuSPARSELt):
        >>> cusparselt_linear(x, packed, None, 64, meta=meta).shape  # doctest: +SKIP
        torch.Size([256, 64])
    """
    shape = meta.out_features, meta.in_features
    tokens = math.prod(x.shape[:-1])
    check_linear(
        "nm.linear.cusparselt", x, packed, bias, out_features, activation,
        shape=shape, dtype=meta.dtype, interpreted=True,
        reasons=limits(
            Problem("linear", "nm", x.device, x.dtype, *shape, N=tokens, n=meta.n, m=meta.m)
        ),
    )  # fmt: skip
    x2d = x.reshape(tokens, meta.in_features)
    if tokens % TOKENS_MULTIPLE or not x2d.is_contiguous():
        x2d = pad(x2d, (0, 0, 0, -tokens % TOKENS_MULTIPLE)).contiguous()
    y = torch._cslt_sparse_mm(
        _compressed(packed, meta),
        x2d.t(),
        bias=None if bias is None else bias.contiguous(),
        transpose_result=True,
        alg_id=_ALGORITHMS.get(_plan(packed, meta, tokens, bias is not None), 0),
    )[:tokens]
    if activation != "none":
        y = activation_module(activation)(y)
    return y.reshape(*x.shape[:-1], out_features)


def _plan(packed: Tensor, meta: NmMeta, tokens: int, biased: bool) -> tuple[object, ...]:
    """All that the choice of an algorithm depends on, with one N for each power of two."""
    power = max(tokens - 1, 0).bit_length()
    return packed.device, meta.dtype, meta.out_features, meta.in_features, biased, power


def _compressed(packed: Tensor, meta: NmMeta) -> Tensor:
    """cuSPARSELt's form of the weight, made once for a buffer."""
    return meta.derived.get(
        packed, "cusparselt", lambda: torch._cslt_compress(_dense(packed, meta))
    )


def _dense(packed: Tensor, meta: NmMeta) -> Tensor:
    planes = meta.n, meta.out_features, meta.groups
    count = math.prod(planes)
    values = section(packed, meta.values, count, meta.dtype).view(planes)
    positions = section(packed, meta.positions, count, torch.uint8).view(planes)
    lanes = values.new_zeros(*planes[1:], meta.m)
    for kept, at in zip(values, positions, strict=True):
        lanes.scatter_(2, (at & 3).to(torch.int64)[..., None], kept[..., None])
    return lanes.view(meta.out_features, -1)


def _kept(numel: int, nnz: int, dtype: torch.dtype, tokens: int) -> int:
    """Bytes of cuSPARSELt's own form: half of the values, and two bits for each of them."""
    if tokens < MIN_TOKENS or dtype not in DTYPES:
        return 0
    return numel * dtype.itemsize * 9 // 16


ROW = Row(
    "nm.linear.cusparselt", "nm", "linear", ("float16", "bfloat16"), isa="cusparselt",
    device="cuda", kernel=f"{__name__}:cusparselt_linear", meta=NmMeta.from_info, refuses=limits,
    least=MIN_TOKENS, search=search, keeps=_kept,
)  # fmt: skip
