"""Layers of well-known libraries whose forward differs from torch's in a way that is known.

They are recognised by the qualified name of their class, never imported. Each is torch's layer
after one or both of two changes: zeros put around the input first, and a weight that is computed
from the parameters, the same at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

__all__ = [
    "SAME", "Adapter", "Padded", "adapter_of", "computes_weight", "qualified_name", "same_padding",
]  # fmt: skip

SAME = "same"
"""Zeros as TensorFlow's "SAME" has them: by the size of the input, the odd one after."""

Ends = tuple[int, ...] | str | None
"""Zeros before and after each axis, `SAME`, or None."""


@dataclass(frozen=True)
class Adapter:
    """How a layer differs from torch's: `ends` reads the zeros that it puts around its input,
    `weight` computes its weight from the parameter; `usual` are the tensors and children that a
    layer of its class has."""

    ends: Callable[[Any], Ends] | None = None
    weight: Callable[[Any, Tensor], Tensor] | None = None
    usual: tuple[str, ...] = ()


def _same(layer: Any) -> Ends:
    return SAME


def _same_where_asked(layer: Any) -> Ends:
    return SAME if layer.same_pad else None


def _static(layer: Any) -> Ends:
    padding = getattr(layer.static_padding, "padding", None)  # an identity where none is needed
    if padding is None:
        return None
    left, right, top, bottom = padding
    return (top, bottom, left, right)


def _standardized(layer: Any, weight: Tensor) -> Tensor:
    """The weight with mean 0 and variance 1 an output channel, times the layer's gain."""
    gain = (layer.gain * layer.scale).view(-1) if hasattr(layer, "gain") else None
    rows = weight.reshape(1, layer.out_channels, -1)
    return F.batch_norm(
        rows, None, None, weight=gain, training=True, momentum=0.0, eps=layer.eps
    ).reshape_as(weight)


_SAME_CONV = Adapter(_same)
_STANDARDIZED = Adapter(None, _standardized, ("gain",))
_STANDARDIZED_SAME = Adapter(_same_where_asked, _standardized, ("gain",))

_ADAPTERS: dict[str, Adapter] = {
    "sparseinfer.layers.adapters.Padded": Adapter(lambda layer: layer.ends),
    "timm.layers.linear.Linear": Adapter(),
    "timm.layers.conv2d_same.Conv2dSame": _SAME_CONV,
    "timm.layers.std_conv.StdConv2d": _STANDARDIZED,
    "timm.layers.std_conv.StdConv2dSame": _STANDARDIZED_SAME,
    "timm.layers.std_conv.ScaledStdConv2d": _STANDARDIZED,
    "timm.layers.std_conv.ScaledStdConv2dSame": _STANDARDIZED_SAME,
    **{
        f"{package}.utils.Conv2d{kind}SamePadding": adapter
        for package in ("efficientnet_pytorch", "efficientnet_lite_pytorch")
        for kind, adapter in (
            ("Static", Adapter(_static, None, ("static_padding",))), ("Dynamic", _SAME_CONV)
        )
    },
}  # fmt: skip
"""timm from 0.9 on; before, the same files were in `timm.models.layers`."""


def qualified_name(layer: nn.Module) -> str:
    """The class of a layer with its module, parametrizations taken off.

    Example:
        >>> qualified_name(nn.Linear(4, 4))
        'torch.nn.modules.linear.Linear'
    """
    cls = parametrize.type_before_parametrizations(layer)
    return f"{cls.__module__}.{cls.__qualname__}"


def adapter_of(layer: nn.Module) -> Adapter | None:
    """What is known of the class of a layer; None where nothing is, or where it is torch's.

    Example:
        >>> adapter_of(nn.Linear(4, 4)) is None
        True
    """
    name = qualified_name(layer).replace("timm.models.layers.", "timm.layers.")
    return _ADAPTERS.get(name)


def computes_weight(layer: nn.Module) -> str:
    """The class of a layer that computes its weight from the parameter; empty where it does not.

    Example:
        >>> computes_weight(nn.Linear(4, 4))
        ''
    """
    adapter = adapter_of(layer)
    return "" if adapter is None or adapter.weight is None else qualified_name(layer)


def same_padding(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> list[int]:  # fmt: skip
    """Zeros before and after each axis so that ceil(size / stride) outputs come out.

    Example:
        >>> same_padding((8, 7), (3, 3), (2, 2), (1, 1))
        [0, 1, 1, 1]
    """
    ends = []
    for n, taps, step, spread in zip(size, kernel, stride, dilation, strict=True):
        total = max(0, (-(-n // step) - 1) * step + spread * (taps - 1) + 1 - n)
        ends += [total // 2, total - total // 2]
    return ends


class Padded(nn.Conv2d):
    """`nn.Conv2d` after zeros were put around its input: `ends`, see `Adapter`.

    It is the plain layer that a converted one of a known library's is compared with, and what
    its `to_dense` gives.

    Example:
        >>> layer = Padded(4, 8, 3, stride=2)
        >>> layer.ends = SAME
        >>> layer(layer.weight.new_zeros(1, 4, 8, 7)).shape
        torch.Size([1, 8, 4, 4])
    """

    ends: Ends = None

    def forward(self, input: Tensor) -> Tensor:
        ends: Any = self.ends
        if ends == SAME:
            size = tuple(input.shape[-2:])
            ends = same_padding(size, self.kernel_size, self.stride, self.dilation)
        if ends is None:
            return super().forward(input)
        top, bottom, left, right = ends
        return super().forward(F.pad(input, (left, right, top, bottom)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ends={self.ends}"
