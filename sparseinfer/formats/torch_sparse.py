"""torch's own sparse tensors, taken as the dense weights that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

__all__ = ["densified", "is_torch_sparse"]


def is_torch_sparse(weight: Tensor) -> bool:
    """Whether `weight` is a sparse tensor of torch: COO, CSR, CSC, BSR, BSC or semi-structured.

    Example:
        >>> is_torch_sparse(torch.eye(2).to_sparse()), is_torch_sparse(torch.eye(2))
        (True, False)
    """
    return weight.layout is not torch.strided or isinstance(weight, SparseSemiStructuredTensor)


def densified(weight: Tensor) -> Tensor:
    """The dense tensor that `weight` stands for; `weight` itself where it is dense.

    A semi-structured tensor in cuSPARSELt's own layout is read by a product with the identity, on
    its GPU, which spreads a NaN over its row; one in CUTLASS's layout is read anywhere, exactly.

    Raises:
        ValueError: torch cannot read this tensor on its device.

    Example:
        >>> densified(torch.eye(2).to_sparse_csr())
        tensor([[1., 0.],
                [0., 1.]])
    """
    if not is_torch_sparse(weight):
        return weight
    try:
        with torch.no_grad():
            if not isinstance(weight, SparseSemiStructuredTensor):
                return weight.detach().to_dense()
            if weight.packed is not None and weight.meta is not None:
                # Of ones: torch moves float32 as pairs of float16, where some bits are a NaN's.
                ones = torch.ones_like(weight.packed)
                kept = sparse_semi_structured_to_dense_cutlass(ones, weight.meta) != 0
                dense = weight.packed.new_zeros(kept.shape)
                dense[kept] = weight.packed.flatten()
                return dense
            return weight.to_dense()
    except (AssertionError, RuntimeError, NotImplementedError) as refusal:
        raise ValueError(
            f"expected a sparse weight that torch can read on {weight.device}, got "
            f"{type(weight).__name__} ({str(refusal).splitlines()[0]}); try the dense weight, or "
            "its own GPU"
        ) from refusal
