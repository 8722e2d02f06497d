"""What transformers are made of: attention, norms over features, embeddings."""

from __future__ import annotations

import torch

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import Call, Refusal, lowers
from sparseinfer.export.masks import Choice, lower_mask

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
    if mask is not None and _is_causal(mask):
        mask, causal = None, True
    scale = float(q.shape[3] ** -0.5 if scale is None else scale)
    return call.add("attention", [q, k, v, mask], scale=scale, causal=causal)


def _is_causal(mask: Value) -> bool:
    """Whether a constant mask hides from each query what comes after it, and nothing else."""
    if mask.constant is None or mask.shape[:2] != (1, 1):
        return False
    hidden = torch.full_like(mask.constant, -torch.inf).triu(1)
    return torch.equal(mask.constant, hidden)


@lowers(aten.layer_norm.default, aten.native_layer_norm.default)
def _layer_norm(call: Call) -> Value:
    x, normalized = call.value(0), list(call.args[1])
    weight, bias = call.argument(2, "weight", None), call.argument(3, "bias", None)
    for value in (weight, bias):
        if value is not None and value.constant is None:
            raise Refusal("its weight or bias is computed")
    if len(normalized) != 1:
        raise Refusal(f"it normalises over {normalized}: the last dimension is taken")
    eps = float(call.argument(4, "eps", 1e-5))
    return call.add("layer_norm", [x, weight, bias], eps=eps, centred=True)


@lowers(aten.rms_norm.default)
def _rms_norm(call: Call) -> Value:
    x, normalized = call.value(0), list(call.args[1])
    weight = call.argument(2, "weight", None)
    if weight is not None and weight.constant is None:
        raise Refusal("its weight is computed")
    if len(normalized) != 1 or (weight is not None and weight.shape != x.shape[-1:]):
        raise Refusal(f"it normalises over {normalized}: the last dimension is taken")
    eps = call.argument(3, "eps", None)
    eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
    return call.add("layer_norm", [x, weight, None], eps=eps, centred=False)


@lowers(aten.embedding.default)
def _embedding(call: Call) -> Value:
    table, ids = call.constant(0), call.value(1)
    if ids.dtype != torch.int64:
        raise Refusal(f"its ids are {ids.dtype}: int64 is taken")
    return call.add("embedding", [ids, table])
