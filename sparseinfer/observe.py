"""Runs a model on example inputs and notes which inputs each of its layers meets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.scan import evaluating

__all__ = ["Example", "Input", "Observation", "list_examples", "observe"]

Example = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call of a model."""


@dataclass(frozen=True)
class Input:
    """Shape, strides and dtype of a tensor that a layer was called with.

    Example:
        >>> Input((2, 3), (3, 1), torch.float32).make(torch.device("cpu")).shape
        torch.Size([2, 3])
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def make(self, device: torch.device) -> Tensor:
        """A random tensor like it; keeping real ones would hold every activation at once."""
        extent = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True) if n)
        generator = torch.Generator(device).manual_seed(0)
        memory = torch.randn(extent, dtype=self.dtype, device=device, generator=generator)
        return memory.as_strided(self.shape, self.strides)

    def __str__(self) -> str:
        return "x".join(map(str, self.shape)) or "scalar"


@dataclass
class Observation:
    """How often each layer met each input, over `passes` forward passes of the model."""

    inputs: dict[nn.Module, Counter[Input]]
    passes: int


def observe(model: nn.Module, layers: Sequence[nn.Module], example_inputs: Any) -> Observation:
    """Run `model` on every example in evaluation mode without gradients, and watch `layers`.

    `example_inputs` is a tensor, a tuple of positional arguments, a dict of keyword arguments, or a
    list of those. Training flags are restored.

    Raises:
        TypeError: an example is none of these.
        ValueError: the list is empty.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> observe(layer, [layer], torch.zeros(2, 4)).inputs[layer].total()
        1
    """
    examples = list_examples(example_inputs)
    inputs: dict[nn.Module, Counter[Input]] = {layer: Counter() for layer in layers}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("input")
        if isinstance(x, Tensor):
            inputs[layer][Input(tuple(x.shape), x.stride(), x.dtype)] += 1

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with evaluating(model):
            for args, kwargs in examples:
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return Observation(inputs, len(examples))


def list_examples(example_inputs: Any) -> list[Example]:
    """The calls that `example_inputs` stands for, as `observe` takes it.

    Raises:
        TypeError: an example is none of its forms.
        ValueError: the list is empty.

    Example:
        >>> list_examples({"x": 1})
        [((), {'x': 1})]
    """
    if not isinstance(example_inputs, list):
        return [_example(example_inputs)]
    if not example_inputs:
        raise ValueError(
            "expected at least one example input, got an empty list; try example_inputs=x"
        )
    return [_example(item) for item in example_inputs]


def _example(item: Any) -> Example:
    if isinstance(item, Tensor):
        return (item,), {}
    if isinstance(item, tuple):
        return item, {}
    if isinstance(item, Mapping):
        return (), dict(item)
    raise TypeError(
        "expected example_inputs to be a tensor, a tuple of positional arguments, a dict of "
        f"keyword arguments or a list of those, got {type(item).__name__}; try example_inputs=(x,)"
    )
