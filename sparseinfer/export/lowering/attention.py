"""What transformers are made of: attention, and embeddings."""

from __future__ import annotations

import torch

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import Call, Refusal, lowers
from sparseinfer.export.masks import Choice, is_causal, lower_mask

aten = torch.ops.aten

MOST_HEAD_FEATURES = 1024


@lowers(aten.scaled_dot_product_attention.default)
def _attention(call: Call) -> Value:
    """Its tensors are [batch, heads, tokens, features] as yet: `place_attention` places them."""
    q, k, v = (call.value(place) for place in range(3))
    if call.argument(4, "dropout_p", 0.0) != 0:
        raise Refusal("it drops elements; try model.eval()")
    if len(q.shape) != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2]:
        raise Refusal(
            f"it attends from {list(q.shape)} to {list(k.shape)} and {list(v.shape)}: heads of one "
            "number and size are taken, in four dimensions"
        )
    if q.shape[3] != k.shape[3] or q.shape[3] > MOST_HEAD_FEATURES:
        raise Refusal(f"its heads have more than {MOST_HEAD_FEATURES} features")
    scale = call.argument(6, "scale", None)
    mask = call.argument(3, "attn_mask", None)
    if mask is not None:
        if not isinstance(mask, Value | Choice):
            raise Refusal("its mask is no tensor")
        mask = lower_mask(call, mask, (*q.shape[:3], k.shape[2]))
    causal = bool(call.argument(5, "is_causal", False))
    if mask is not None and mask.constant is not None and is_causal(mask.constant):
        mask, causal = None, True
    scale = float(q.shape[3] ** -0.5 if scale is None else scale)
    return call.add("attention", [q, k, v, mask], scale=scale, causal=causal)


@lowers(aten.embedding.default)
def _embedding(call: Call) -> Value:
    table, ids = call.constant(0), call.value(1)
    if ids.dtype != torch.int64:
        raise Refusal(f"its ids are {ids.dtype}: int64 is taken")
    return call.add("embedding", [ids, table])
