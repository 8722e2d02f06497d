"""Small random networks over all operators of the engine, for comparison with torch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["RandomNetwork", "random_network"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
}  # fmt: skip

IDS = 11
"""Of an input of ids: a table has so many rows."""
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": F.leaky_relu, "elu": F.elu, "clamp": lambda x: x.clamp(-0.5, 0.7),
    "softplus": F.softplus, "abs": torch.abs,
    "sqrt": lambda x: (x.abs() + 0.1).sqrt(), "mish": F.mish, "erf": torch.erf,
}  # fmt: skip

BINARIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "minimum": torch.minimum,
    "maximum": torch.maximum, "div": lambda a, b: a / (b.abs() + 0.5),
}  # fmt: skip

MOST_ELEMENTS = 4096
"""Of a tensor: networks are small, and many."""


class RandomNetwork(nn.Module):
    """Steps that each read tensors computed before: by number, the inputs first.

    `wanted` are the numbers of its outputs. It prints as what it computes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.steps: list[tuple[str, list[int], Callable[..., Tensor]]] = []
        self.wanted: list[int] = []

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = list(inputs)
        for _, reads, call in self.steps:
            values.append(call(*(values[place] for place in reads)))
        return tuple(values[place] for place in self.wanted)

    def __repr__(self) -> str:
        lines = [f"{name} of {reads}" for name, reads, _ in self.steps]
        return "\n".join([*lines, f"outputs {self.wanted}"])


class _Builder:
    """Adds steps that fit the tensors that are there; `values` are those of a trial run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.network = RandomNetwork()
        batch = self.random.choice([1, 1, 2, 3])
        shape = self._input_shape(batch)
        self.inputs = [torch.randn(shape)]
        if self.random.random() < 0.4:
            self.inputs.append(torch.randn(self.random.choice([shape, self._input_shape(batch)])))
        if self.random.random() < 0.3:
            self.inputs.append(torch.randint(IDS, (batch, self.random.randint(1, 9))))
        self.values = list(self.inputs)

    def _input_shape(self, batch: int) -> tuple[int, ...]:
        pick = self.random.randint
        return self.random.choice([
            (batch, pick(1, 9), pick(1, 14), pick(1, 14)),
            (batch, pick(1, 8), pick(2, 24)),
            (batch, pick(1, 40)),
        ])  # fmt: skip

    def build(self, steps: int) -> None:
        makers = [
            self.linear, self.conv, self.conv, self.depthwise, self.add, self.add, self.activation,
            self.activation, self.max_pool, self.average_pool, self.global_pool, self.reshape,
            self.softmax, self.concat, self.norm, self.line, self.layer_norm, self.permute,
            self.embedding, self.attention, self.attention, self.slice, self.binary,
            self.binary, self.unary, self.resize, self.resize, self.reduce, self.masked,
            self.masked,
        ]  # fmt: skip
        while len(self.network.steps) < steps:
            self.random.choice(makers)()
        # What nothing reads is an output, and now and then something that is read.
        read = {place for _, reads, _ in self.network.steps for place in reads}
        first = len(self.inputs)
        wanted = [k for k in range(first, len(self.values)) if k not in read]
        wanted += [k for k in range(first, len(self.values)) if self.random.random() < 0.1]
        self.network.wanted = wanted
        self.network.eval()

    def pick(self, dims: int | None = None) -> int | None:
        """One of the tensors, the latest the likeliest; None where none has so many dimensions."""
        places = [
            k for k, x in enumerate(self.values)
            if x.is_floating_point() and (dims is None or x.dim() == dims)
        ]  # fmt: skip
        if not places:
            return None
        return max(self.random.choice(places), self.random.choice(places))

    def put(self, name: str, reads: list[int], call: Any) -> None:
        if isinstance(call, nn.Module):
            self.network.layers[str(len(self.network.steps))] = call.eval()
        with torch.no_grad():
            y = call(*(self.values[place] for place in reads))
        if 0 < y.numel() <= MOST_ELEMENTS:
            self.network.steps.append((name, reads, call))
            self.values.append(y)

    def pruned(self, layer: Any) -> Any:
        """A layer with zeros: none, some, most, or rows of nothing else."""
        sparsity = self.random.choice([0.0, 0.5, 0.8, 0.95])
        layer.weight.data *= torch.rand_like(layer.weight) >= sparsity
        if self.random.random() < 0.2:
            layer.weight.data[torch.rand(len(layer.weight)) < 0.4] = 0
        return layer

    def linear(self) -> None:
        place = self.pick()
        assert place is not None
        layer = nn.Linear(self.values[place].shape[-1], self.random.randint(1, 40),
                          bias=self.random.random() < 0.7)  # fmt: skip
        self.put("linear", [place], self.pruned(layer))

    def conv(self) -> None:
        place = self.pick(4)
        if place is None:
            return
        channels = self.values[place].shape[1]
        groups = self.random.choice([g for g in (1, 1, 2, 3, channels) if channels % g == 0])
        kernel = (self.random.choice([1, 2, 3, 3, 5]), self.random.choice([1, 3, 3, 5]))
        dilation = self.random.choice([1, 1, 2])
        padding = tuple(self.random.randint(0, dilation * (k - 1)) for k in kernel)
        if not self._fits(place, kernel, padding, dilation):
            return
        layer = nn.Conv2d(
            channels, groups * self.random.randint(1, 6), kernel, self.random.choice([1, 1, 2]),
            padding, dilation, groups, bias=self.random.random() < 0.6,
        )  # fmt: skip
        self.put("conv", [place], self.pruned(layer))

    def depthwise(self) -> None:
        place = self.pick(4)
        if place is None:
            return
        channels, size = self.values[place].shape[1], self.random.choice([3, 3, 5, 7])
        padding = (self.random.randint(0, size // 2), self.random.randint(0, size // 2))
        if not self._fits(place, (size, size), padding, 1):
            return
        stride = self.random.choice([1, 1, 2])
        layer = nn.Conv2d(channels, channels, size, stride, padding, groups=channels)
        self.put("depthwise", [place], layer)

    def line(self) -> None:
        place = self.pick(3)
        if place is None:
            return
        channels, size = self.values[place].shape[1], self.random.choice([1, 3, 5])
        padding = self.random.randint(0, size // 2)
        if self.values[place].shape[2] + 2 * padding < size:
            return
        layer = nn.Conv1d(
            channels, self.random.randint(1, 9), size, self.random.choice([1, 2]), padding
        )
        self.put("conv1d", [place], self.pruned(layer))

    def _fits(self, place: int, kernel: Any, padding: Any, dilation: int) -> bool:
        sizes = zip(self.values[place].shape[2:], kernel, padding, strict=True)
        return all(size + 2 * pad >= dilation * (k - 1) + 1 for size, k, pad in sizes)

    def add(self) -> None:
        place = self.pick()
        assert place is not None
        shape = self.values[place].shape
        same = [k for k, x in enumerate(self.values) if x.shape == shape and x.is_floating_point()]
        other = self.random.choice(same)
        # Often of a convolution of the same shape, which the addition becomes part of.
        if len(shape) == 4 and self.random.random() < 0.5:
            layer = nn.Conv2d(shape[1], shape[1], 3, padding=1)
            self.put("conv", [place], self.pruned(layer))
            other = len(self.values) - 1
        self.put("add", [place, other], torch.add)

    def activation(self) -> None:
        place = self.pick()
        assert place is not None
        name = self.random.choice(list(ACTIVATIONS))
        self.put(name, [place], ACTIVATIONS[name])

    def unary(self) -> None:
        place = self.pick()
        assert place is not None
        name = self.random.choice(list(FUNCTIONS))
        self.put(name, [place], FUNCTIONS[name])

    def binary(self) -> None:
        place = self.pick()
        assert place is not None
        shape = self.values[place].shape
        fitting = [
            k for k, x in enumerate(self.values)
            if x.is_floating_point() and _broadcasts(shape, x.shape)
        ]  # fmt: skip
        pair = [place, self.random.choice(fitting)]
        self.random.shuffle(pair)
        name = self.random.choice(list(BINARIES))
        call = BINARIES[name]
        if self.random.random() < 0.4:
            constant = torch.randn(
                self.random.choice([(1,), shape[-1:], (shape[1], *[1] * (len(shape) - 2))])
            )
            self.put(f"{name} of a constant", [place], lambda x: call(x, constant.to(x.dtype)))
        else:
            self.put(name, pair, call)

    def resize(self) -> None:
        place = self.pick(4)
        if place is None:
            return
        size = (self.random.randint(1, 16), self.random.randint(1, 16))
        aligned = self.random.choice([None, False, True])
        mode = "nearest" if aligned is None else "bilinear"
        self.put(
            f"{mode} {size} {aligned}", [place],
            lambda x: F.interpolate(x, size, mode=mode, align_corners=aligned),
        )  # fmt: skip

    def reduce(self) -> None:
        place = self.pick()
        assert place is not None
        dims = self.values[place].dim()
        # The batch stays, so that the network has one.
        axes = tuple(self.random.sample(range(1, dims), self.random.randint(1, dims - 1)))
        call = self.random.choice([torch.mean, torch.sum, torch.amax, torch.amin])
        keepdim = dims - len(axes) < 2 or self.random.random() < 0.5
        self.put(f"{call.__name__} {axes}", [place], lambda x: call(x, axes, keepdim=keepdim))

    def max_pool(self) -> None:
        self._pool("max_pool", F.max_pool2d)

    def average_pool(self) -> None:
        counts = self.random.random() < 0.5
        self._pool(
            "average_pool", lambda x, *rest: F.avg_pool2d(x, *rest, count_include_pad=counts)
        )

    def _pool(self, name: str, pool: Callable[..., Tensor]) -> None:
        place = self.pick(4)
        if place is None:
            return
        kernel = (self.random.randint(1, 3), self.random.randint(1, 4))
        stride = (self.random.randint(1, 3), self.random.randint(1, 2))
        padding = tuple(self.random.randint(0, k // 2) for k in kernel)
        if self._fits(place, kernel, padding, 1):
            self.put(name, [place], lambda x: pool(x, kernel, stride, padding))

    def global_pool(self) -> None:
        place = self.pick(4)
        if place is None:
            return
        if self.random.random() < 0.5:
            self.put("mean", [place], lambda x: x.mean((2, 3)))
        else:
            self.put("adaptive", [place], lambda x: F.adaptive_avg_pool2d(x, 1))

    def reshape(self) -> None:
        place = self.pick()
        assert place is not None
        self.put("flatten", [place], lambda x: x.flatten(1))

    def softmax(self) -> None:
        place = self.pick()
        assert place is not None
        axis = self.random.randrange(self.values[place].dim())
        self.put(f"softmax {axis}", [place], lambda x: x.softmax(axis))

    def concat(self) -> None:
        place = self.pick()
        assert place is not None
        shape = self.values[place].shape
        axis = self.random.randrange(len(shape))
        fitting = [
            k for k, x in enumerate(self.values)
            if x.is_floating_point() and x.dim() == len(shape)
            and (*x.shape[:axis], *x.shape[axis + 1 :]) == (*shape[:axis], *shape[axis + 1 :])
        ]  # fmt: skip
        parts = [place, *self.random.choices(fitting, k=self.random.randint(1, 2))]
        self.put(f"concat {axis}", parts, lambda *xs: torch.cat(xs, axis))

    def layer_norm(self) -> None:
        place = self.pick()
        assert place is not None
        # Of a small eps, rows of nearly one number would show the rounding before them enlarged.
        layer = nn.LayerNorm(
            self.values[place].shape[-1], 0.1, elementwise_affine=self.random.random() < 0.7
        )
        if layer.elementwise_affine:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
        self.put("layer_norm", [place], layer)

    def permute(self) -> None:
        place = self.pick()
        assert place is not None
        axes = list(range(self.values[place].dim()))
        self.random.shuffle(axes)
        self.put(f"permute {axes}", [place], lambda x: x.permute(axes))

    def slice(self) -> None:
        place = self.pick()
        assert place is not None
        shape = self.values[place].shape
        axis = self.random.randrange(len(shape))
        if len(shape) > 2 and self.random.random() < 0.4:
            index = self.random.randrange(-shape[axis], shape[axis])
            self.put(f"select {axis} {index}", [place], lambda x: x.select(axis, index))
            return
        first = self.random.randrange(shape[axis])
        step = self.random.choice([1, 1, 2, 3])
        cut = (slice(None),) * axis + (slice(first, self.random.choice([None, -1, 5]), step),)
        self.put(f"slice {cut}", [place], lambda x: x[cut])

    def _ids(self) -> list[int]:
        return [k for k, x in enumerate(self.values) if not x.is_floating_point()]

    def embedding(self) -> None:
        places = self._ids()
        if places:
            self.put("embedding", [places[0]], nn.Embedding(IDS, self.random.randint(1, 12)))

    def masked(self) -> None:
        place = self.pick(3)
        masks = [] if place is None else [
            k for k in self._ids() if len(self.values[k]) == len(self.values[place])
        ]  # fmt: skip
        if not masks:
            return
        layer = _MaskedSoftmax(self.values[place].shape[-1], self.values[masks[0]].shape[1])
        self.put("masked softmax", [place, masks[0]], layer)

    def attention(self) -> None:
        place = self.pick(3)
        if place is None:
            return
        batch, tokens, features = self.values[place].shape
        heads = self.random.choice([h for h in range(1, features + 1) if features % h == 0])
        way = self.random.choice(["split", "unbind", "tokens first", "heads first"])
        masks = [k for k in self._ids() if self.values[k].shape == (batch, tokens)]
        reads = [place, *masks[: self.random.randint(0, 1)]]
        causal = len(reads) == 1 and self.random.random() < 0.4
        self.put(f"attention {way}", reads, _Attention(features, heads, way, causal))

    def norm(self) -> None:
        place = self.pick(4)
        if place is None:
            return
        layer = nn.BatchNorm2d(self.values[place].shape[1], affine=self.random.random() < 0.8)
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.uniform_(-0.5, 0.5)
        layer.running_var.uniform_(0.5, 2.0)
        if layer.affine:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
        self.put("norm", [place], layer)


class _Attention(nn.Module):
    """Heads of a token that are cut out as models do it, masked as they do it."""

    def __init__(self, features: int, heads: int, way: str, causal: bool) -> None:
        super().__init__()
        self.projections = nn.Linear(features, 3 * features)
        self.heads, self.way, self.causal = heads, way, causal

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        batch, tokens, features = x.shape
        whole = self.projections(x)
        if self.way == "split":
            parts = [
                part.view(batch, tokens, self.heads, -1).transpose(1, 2)
                for part in whole.split(features, 2)
            ]
        elif self.way == "unbind":
            apart = whole.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            parts = list(apart.unbind(0))
        elif self.way == "heads first":
            apart = whole.view(batch, tokens, self.heads, 3, -1)
            parts = [apart[:, :, :, i].transpose(1, 2) for i in range(3)]
        else:
            turned = whole.transpose(0, 1).contiguous()
            parts = [
                part.reshape(tokens, batch * self.heads, -1).transpose(0, 1)
                for part in turned.split(features, 2)
            ]
            parts = [part.reshape(batch, self.heads, tokens, -1) for part in parts]
        mask = None if ids is None else (ids != 0)[:, None, None, :]
        y = F.scaled_dot_product_attention(*parts, attn_mask=mask, is_causal=self.causal)
        return y.transpose(1, 2).reshape(batch, tokens, features)


class _MaskedSoftmax(nn.Module):
    """Scores of an input's ids, of which those of padding are hidden."""

    def __init__(self, features: int, ids: int) -> None:
        super().__init__()
        self.scores = nn.Linear(features, ids)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        hidden = (ids == 0)[:, None, :]
        return self.scores(x).masked_fill(hidden, torch.finfo(x.dtype).min).softmax(2)


def _broadcasts(a: torch.Size, b: torch.Size) -> bool:
    """Whether two shapes of as many dimensions fit."""
    return len(a) == len(b) and all(x == y or 1 in (x, y) for x, y in zip(a, b, strict=True))


def random_network(seed: int, steps: int = 9) -> tuple[RandomNetwork, tuple[Tensor, ...]]:
    """A network of about so many steps, and inputs of its shapes: the same for a seed.

    Example:
        >>> network, inputs = random_network(1)
        >>> [y.shape for y in network(*inputs)] == [y.shape for y in random_network(1)[0](*inputs)]
        True
    """
    builder = _Builder(seed)
    builder.build(steps)
    return builder.network, tuple(builder.inputs)
