"""Multi-head attention whose projections are sparse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer.formats.stand_in import read_only
from sparseinfer.layers.fx import Proxy, leaf
from sparseinfer.layers.linear_conv import SparseLayer, SparseLinear
from sparseinfer.layers.projections import projections

__all__ = ["SparseMultiheadAttention"]

_TORCHS = {
    "in_proj_weight": ("in_proj", "weight"), "in_proj_bias": ("in_proj", "bias"),
    "q_proj_weight": ("q_proj", "weight"), "k_proj_weight": ("k_proj", "weight"),
    "v_proj_weight": ("v_proj", "weight"),
}  # fmt: skip
"""Which projection holds what torch's attention calls by these names."""

_OWN = "embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout", "batch_first"


class SparseMultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` with projections that are layers: arguments and results are torch's.

    `layers` are `in_proj` `[E, 3 E]`, which makes query, key and value at once where all three
    are one tensor, or `q_proj`, `k_proj` and `v_proj`; and `out_proj`: each a `SparseLinear` or an
    `nn.Linear`. With `in_proj`, a call whose query, key and value differ is right, and wasteful.
    Nested tensors are refused: torch takes them only on a path that reads dense weights.

    Raises:
        ValueError: the layers are not the ones named above.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017.

    Example:
        >>> layer = SparseMultiheadAttention.from_dense(nn.MultiheadAttention(8, 2))
        >>> x = torch.zeros(5, 3, 8)
        >>> layer(x, x, x, need_weights=False)[0].shape
        torch.Size([5, 3, 8])
    """

    embed_dim: int
    kdim: int
    vdim: int
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool
    in_proj: Any
    q_proj: Any
    k_proj: Any
    v_proj: Any
    out_proj: Any
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(self, like: nn.MultiheadAttention, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if set(layers) not in (
            {"in_proj", "out_proj"}, {"q_proj", "k_proj", "v_proj", "out_proj"}
        ):  # fmt: skip
            raise ValueError(
                "expected in_proj and out_proj, or q_proj, k_proj, v_proj and out_proj, got "
                f"{', '.join(layers)}; try SparseMultiheadAttention.from_dense(attention)"
            )
        for name in _OWN:
            setattr(self, name, getattr(like, name))
        self.add_zero_attn = like.add_zero_attn
        self._qkv_same_embed_dim = like._qkv_same_embed_dim
        for name, layer in layers.items():
            self.add_module(name, layer)
        for name in ("bias_k", "bias_v"):
            bias = getattr(like, name)
            copied = None
            if bias is not None:
                copied = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
            self.register_parameter(name, copied)
        self.train(like.training)

    @classmethod
    def from_dense(
        cls, module: nn.MultiheadAttention, format: str = "panel", separate: bool = False,
        **params: Any,
    ) -> SparseMultiheadAttention:  # fmt: skip
        """Pack every projection of an attention, which may be masked or parametrized.

        `separate` packs the projections of query, key and value one by one, for attention between
        two sequences. `params` are the format's, see `sparseinfer.pack`.

        Raises:
            TypeError: `module` is not an nn.MultiheadAttention, or its weights are not float32.
            ValueError: the format is unknown or cannot store a weight.

        Example:
            >>> SparseMultiheadAttention.from_dense(nn.MultiheadAttention(8, 2)).in_proj.format
            'panel'
        """
        if not isinstance(module, nn.MultiheadAttention):
            raise TypeError(
                f"expected an nn.MultiheadAttention, got {type(module).__name__}; "
                "try convert_to_sparse(model)"
            )
        layers = projections(module, separate)
        packed = {layer.role: SparseLinear.from_dense(layer, format, **params) for layer in layers}
        return cls(module, packed)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `nn.MultiheadAttention.forward`."""
        if isinstance(query, Proxy):
            return leaf(  # type: ignore[no-any-return]
                self, query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        _check_inputs(query, key, value)
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "expected attn_mask beside is_causal, which is a hint about it, got None; try "
                "nn.Transformer.generate_square_subsequent_mask(length)"
            )
        q, k, v = map(self._heads, self._project(query, key, value))
        keys = k.shape[2]
        k, v = self._extend(k, self.bias_k), self._extend(v, self.bias_v)
        # As in torch: the hint replaces the mask where nothing else is asked for.
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(attn_mask, key_padding_mask, q, keys)
        if mask is not None and k.shape[2] > keys:
            mask = F.pad(mask, (0, k.shape[2] - keys))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            if dropout > 0.0:
                weights = F.dropout(weights, dropout)
            mixed = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights.squeeze(0) if query.dim() == 2 else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        return self.out_proj(self._joined(mixed, query.dim() == 3)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if "in_proj" not in self._modules:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if query is key and key is value:
            return self.in_proj(query).chunk(3, dim=-1)
        q = self.in_proj(query).chunk(3, dim=-1)
        k = q if key is query else self.in_proj(key).chunk(3, dim=-1)
        v = k if value is key else q if value is query else self.in_proj(value).chunk(3, dim=-1)
        return q[0], k[1], v[2]

    def _heads(self, x: Tensor) -> Tensor:
        """`[batch, heads, tokens, head_dim]` of a projection in the layout of the inputs."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        if x.dim() == 3:
            return x.transpose(0, 1).unsqueeze(0)
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _joined(self, x: Tensor, batched: bool) -> Tensor:
        """The inverse of `_heads`."""
        if not batched:
            return x.squeeze(0).transpose(0, 1).flatten(1)
        return (x.transpose(1, 2) if self.batch_first else x.permute(2, 0, 1, 3)).flatten(2)

    def _extend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Append what add_bias_kv and add_zero_attn add to keys and values."""
        batch = x.shape[0]
        more = [x]
        if bias is not None:
            more.append(
                bias.view(1, 1, self.num_heads, self.head_dim)
                .transpose(1, 2)
                .expand(batch, -1, -1, -1)
            )
        if self.add_zero_attn:
            more.append(x.new_zeros(batch, self.num_heads, 1, self.head_dim))
        return x if len(more) == 1 else torch.cat(more, dim=2)

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, keys: int
    ) -> Tensor | None:
        """Both masks as one that is added to the scores, of a shape that spreads to theirs."""
        batch, heads, tokens, _ = q.shape
        mask = None
        if attn_mask is not None:
            shape = (tokens, keys) if attn_mask.dim() == 2 else (batch * heads, tokens, keys)
            attn_mask = _added(attn_mask, "attn_mask", shape, q.dtype)
            split = (1, 1) if attn_mask.dim() == 2 else (batch, heads)
            mask = attn_mask.reshape(*split, tokens, keys)
        if key_padding_mask is not None:
            flat = key_padding_mask.dim() == 1 and batch == 1
            expected = (keys,) if flat else (batch, keys)
            padding = _added(key_padding_mask, "key_padding_mask", expected, q.dtype)
            padding = padding.reshape(batch, 1, 1, keys)
            mask = padding if mask is None else mask + padding
        return mask

    @classmethod
    def weights(cls, dense: nn.MultiheadAttention) -> list[str]:
        """Names of the weights that torch's attention holds itself."""
        if dense._qkv_same_embed_dim:
            return ["in_proj_weight"]
        return ["q_proj_weight", "k_proj_weight", "v_proj_weight"]

    @classmethod
    def renames(cls, layer: nn.Module) -> dict[str, str]:
        """What a sparse attention calls the tensors of a dense one that it holds as they are."""
        return {"in_proj_bias": "in_proj.bias"} if "in_proj" in layer._modules else {}

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Which tensors of the projections, one below the other, torch's attention holds itself."""
        roles = ["in_proj"] if "in_proj" in self._modules else ["q_proj", "k_proj", "v_proj"]
        layers = [self.get_submodule(role) for role in roles]
        stored = [
            f"{role}.{'packed' if isinstance(layer, SparseLayer) else 'weight'}"
            for role, layer in zip(roles, layers, strict=True)
        ]
        found = {"in_proj_weight": tuple(stored)}
        if not self._qkv_same_embed_dim:
            found = {f"{role}_weight": (name,) for role, name in zip(roles, stored, strict=True)}
        if layers[0].bias is not None:
            found["in_proj_bias"] = tuple(f"{role}.bias" for role in roles)
        return found

    def dense_tensor(self, name: str) -> Tensor:
        """A weight or bias as a state_dict of torch's attention holds it."""
        tensor: Tensor = getattr(self, name)
        return tensor.detach()

    def plain(self) -> nn.MultiheadAttention:
        """A dense attention of the same arguments without values, on the meta device."""
        return nn.MultiheadAttention(
            self.embed_dim, self.num_heads, self.dropout, self.out_proj.bias is not None,
            self.bias_k is not None, self.add_zero_attn, self.kdim, self.vdim, self.batch_first,
            device="meta",
        )  # fmt: skip

    def to_dense(self) -> nn.MultiheadAttention:
        """The torch layer that computes the same.

        Example:
            >>> layer = SparseMultiheadAttention.from_dense(nn.MultiheadAttention(8, 2))
            >>> type(layer.to_dense()).__name__
            'MultiheadAttention'
        """
        dense = self.plain()

        def own(tensor: Tensor) -> nn.Parameter:
            return nn.Parameter(tensor.detach().clone())

        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight",
                     "in_proj_bias", "bias_k", "bias_v"):  # fmt: skip
            if getattr(dense, name) is not None:
                setattr(dense, name, own(getattr(self, name)))
        dense.out_proj.weight = own(self.out_proj.weight)
        if dense.out_proj.bias is not None:
            dense.out_proj.bias = own(self.out_proj.bias)
        return dense.train(self.training)

    original = to_dense

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any],
        strict: bool, missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Give each projection what a state_dict of torch's attention holds for it."""
        for end in ("", "_orig", "_mask"):
            for kind in ("weight", "bias"):
                whole = state_dict.pop(f"{prefix}in_proj_{kind}{end}", None)
                if whole is None:
                    continue
                if "in_proj" in self._modules:
                    state_dict[f"{prefix}in_proj.{kind}{end}"] = whole
                else:
                    for role, part in zip("qkv", whole.chunk(3), strict=True):
                        state_dict[f"{prefix}{role}_proj.{kind}{end}"] = part
            for role in "qkv":
                own = state_dict.pop(f"{prefix}{role}_proj_weight{end}", None)
                if own is not None:
                    state_dict[f"{prefix}{role}_proj.weight{end}"] = own
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _joined_of(self, kind: str) -> Tensor | None:
        """The weights or biases of query, key and value one below the other, read-only; or None."""
        if "in_proj" in self._modules:
            return getattr(self.in_proj, kind)  # type: ignore[no-any-return]
        parts = [getattr(layer, kind) for layer in (self.q_proj, self.k_proj, self.v_proj)]
        if parts[0] is None:
            return None
        if torch.compiler.is_compiling():  # the compiler does not trace through the stand-in
            return torch.cat(parts)
        grad = torch.is_grad_enabled()
        # An inference tensor would not count the writes to it.
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            return read_only(torch.cat(parts))

    def _assign(self, role: str, kind: str, value: Any) -> None:
        """Give the projection `role`, or those that make up `in_proj`, a new weight or bias."""
        if role == "in_proj" and "in_proj" not in self._modules:
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) % 3:
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"expected a tensor of query, key and value one below the other, got {got}; "
                    f"try one of {3 * self.embed_dim} rows"
                )
            for part, own in zip("qkv", value.detach().chunk(3), strict=True):
                self._assign(f"{part}_proj", kind, own.clone())
            return
        layer = self.get_submodule(role)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            if not (isinstance(layer, SparseLayer) and kind == "weight"):
                value = nn.Parameter(value, getattr(layer, kind).requires_grad)
        setattr(layer, kind, value)

    @property
    def in_proj_weight(self) -> Tensor | None:
        """The weight of query, key and value together, as torch's has it; or None."""
        return self._joined_of("weight") if self._qkv_same_embed_dim else None

    @property
    def in_proj_bias(self) -> Tensor | None:
        """The biases of query, key and value together; None where there are none."""
        return self._joined_of("bias")

    @property
    def q_proj_weight(self) -> Tensor | None:
        """The query's weight where kdim or vdim differ from embed_dim; else None."""
        return None if self._qkv_same_embed_dim else self.q_proj.weight

    @property
    def k_proj_weight(self) -> Tensor | None:
        """The key's weight where kdim or vdim differ from embed_dim; else None."""
        return None if self._qkv_same_embed_dim else self.k_proj.weight

    @property
    def v_proj_weight(self) -> Tensor | None:
        """The value's weight where kdim or vdim differ from embed_dim; else None."""
        return None if self._qkv_same_embed_dim else self.v_proj.weight

    def __setattr__(self, name: str, value: Any) -> None:
        # Torch's names, for those who assign them.
        if name in _TORCHS:
            self._assign(*_TORCHS[name], value)
        else:
            super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name in _TORCHS:
            self._assign(*_TORCHS[name], param)
        else:
            super().register_parameter(name, param)

    def extra_repr(self) -> str:
        text = f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"
        return f"{text}, dropout={self.dropout}, batch_first={self.batch_first}"


def _check_inputs(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.is_nested or key.is_nested or value.is_nested:
        raise RuntimeError(
            "expected dense tensors, got a nested one; try x.to_padded_tensor(0.0) with a "
            "key_padding_mask"
        )
    ranks = [query.dim(), key.dim(), value.dim()]
    if ranks not in ([2, 2, 2], [3, 3, 3]):
        raise RuntimeError(
            "expected query, key and value of 2 dimensions (unbatched) or of 3, got "
            f"{', '.join(map(str, ranks))}; try x.unsqueeze(0)"
        )
    if key.shape[:-1] != value.shape[:-1]:
        raise RuntimeError(
            f"expected key and value of as many tokens, got {list(key.shape)} and "
            f"{list(value.shape)}; try the same tensor for both"
        )


def _added(mask: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A boolean mask (True hides) or one of numbers as what is added to the scores."""
    if tuple(mask.shape) != shape:
        raise RuntimeError(
            f"expected {name} of shape {list(shape)}, got {list(mask.shape)}; try broadcasting it"
        )
    if mask.dtype is torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
    if not mask.is_floating_point():
        raise RuntimeError(
            f"expected {name} to be boolean or floating point, got {mask.dtype}; try mask.bool()"
        )
    return mask
