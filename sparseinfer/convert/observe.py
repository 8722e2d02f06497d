"""Runs a model on example inputs and notes which inputs each of its layers meets."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from sparseinfer.convert.scan import evaluating
from sparseinfer.convert.state import Changes, State, random_state_kept
from sparseinfer.convert.tree import reads_children
from sparseinfer.layers.projections import Projection, called
from sparseinfer.switches import switching

__all__ = [
    "Example", "Input", "Observation", "list_examples", "observe", "run_on", "separate_attentions",
    "uncompiled",
]  # fmt: skip

_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]

Example = tuple[_Args, _Kwargs]
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
    """How often each layer met each input, over `passes` forward passes of the model.

    `changes` is what those passes changed in the model and in the examples, and was put back.
    """

    inputs: dict[nn.Module, Counter[Input]]
    passes: int
    changes: Changes = field(default_factory=lambda: Changes([]))


def observe(model: nn.Module, layers: Sequence[nn.Module], example_inputs: Any) -> Observation:
    """Run `model` on every example in evaluation mode without gradients, and watch `layers`.

    `example_inputs` is a tensor, a tuple of positional arguments, a dict of keyword arguments, or a
    list of those. The model and the examples are as before afterwards.

    Raises:
        TypeError: an example is none of these, or holds an iterator.
        ValueError: the list is empty.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> observe(layer, [layer], torch.zeros(2, 4)).inputs[layer].total()
        1
    """
    examples = list_examples(example_inputs)
    inputs: dict[nn.Module, Counter[Input]] = {layer: Counter() for layer in layers}

    def watch(layer: nn.Module) -> RemovableHandle:
        def note(_: nn.Module, args: _Args, kwargs: _Kwargs) -> None:
            if isinstance(layer, Projection):
                x = layer.read(args, kwargs)
            else:
                x = args[0] if args else kwargs.get("input")
            if isinstance(x, PackedSequence):
                x = _padded(x, getattr(layer, "batch_first", False))
            if isinstance(x, Tensor) and not x.is_nested:
                inputs[layer][Input(tuple(x.shape), x.stride(), x.dtype)] += 1

        return called(layer).register_forward_pre_hook(note, with_kwargs=True)

    changes = run_on(model, examples, [watch(layer) for layer in layers])
    return Observation(inputs, len(examples), changes)


def _padded(x: PackedSequence, batch_first: bool) -> Tensor:
    """A tensor of the shape that these sequences have when they are padded, without memory."""
    batch, steps = int(x.batch_sizes[0]), len(x.batch_sizes)
    shape = (batch, steps) if batch_first else (steps, batch)
    return torch.empty((*shape, *x.data.shape[1:]), dtype=x.data.dtype, device="meta")


def separate_attentions(model: nn.Module, example_inputs: Any) -> set[nn.Module]:
    """The attentions of `model` that are called with query, key and value that are not one tensor.

    Raises:
        TypeError, ValueError: see `observe`.

    Example:
        >>> separate_attentions(nn.Linear(4, 4), torch.zeros(2, 4))
        set()
    """
    examples = list_examples(example_inputs)
    found: set[nn.Module] = set()

    def note(attention: nn.Module, args: _Args, kwargs: _Kwargs) -> None:
        query, key, value = (
            args[place] if place < len(args) else kwargs.get(name)
            for place, name in enumerate(("query", "key", "value"))
        )
        if query is not key or key is not value:
            found.add(attention)

    attentions = [module for module in model.modules() if reads_children(module)]
    if attentions:
        hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in attentions]
        run_on(model, examples, hooks)
    return found


def run_on(
    model: nn.Module, examples: Sequence[Example], hooks: Sequence[RemovableHandle] = ()
) -> Changes:
    """Call the model on every example, then remove the hooks and put back what the calls changed.

    Each call meets the state and the inputs that the first one met. Torch's inference fast paths
    would pass by the hooks, and compiled code may, so neither is taken. Returns what was changed.

    Example:
        >>> bool(run_on(nn.Linear(4, 4), [((torch.zeros(2, 4),), {})]))
        False
    """
    changes = Changes([])
    with switching():
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with evaluating(model), random_state_kept(model), uncompiled():
                for args, kwargs in examples:
                    state = State(model, inputs=(args, kwargs))
                    try:
                        with state.watching():
                            model(*args, **kwargs)
                    finally:
                        found = state.changes()
                        found.restore()
                        changes += found
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for hook in hooks:
                hook.remove()
    return changes


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what torch.compile made as it was written.

    Example:
        >>> with uncompiled():
        ...     pass
    """
    # To import torch's compiler takes seconds, and what is not imported has compiled nothing.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


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
    _check_repeatable(item)
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


def _check_repeatable(item: Any) -> None:
    """Refuse what the first call would use up."""
    parts = item.values() if isinstance(item, Mapping) else item if type(item) is tuple else ()
    for part in parts:
        if isinstance(part, Iterator):
            raise TypeError(
                "expected example inputs that the model can be called with again and again, got a "
                f"{type(part).__name__}, which one call uses up; try a list of what it gives"
            )
