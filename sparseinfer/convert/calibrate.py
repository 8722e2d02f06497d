"""Calibration: runs a model on sample data and finds the scales of its layers' inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparseinfer.convert.observe import Example, list_examples, run_on
from sparseinfer.convert.scan import brief, scan
from sparseinfer.layers.kinds import KINDS
from sparseinfer.layers.projections import Projection, called
from sparseinfer.quantize.activations import ActivationScale
from sparseinfer.quantize.observers import Observer, observer

__all__ = ["QUANTIZED_KINDS", "Calibration", "LayerInputs", "calibrate", "watch_inputs"]

QUANTIZED_KINDS = frozenset(
    kind.name for kind in KINDS if getattr(kind.sparse, "takes_int8", False) and not kind.parts
)
"""Kinds of layers (`sparseinfer.layers.kinds`) that multiply by int8 weights."""

SAMPLE_ELEMENTS = 1 << 18
"""Of a layer's inputs so many are kept, to compare outputs on: a megabyte in float32."""


@dataclass
class LayerInputs:
    """What a layer was called with: the scale of it, or why there is none, and a sample.

    `sample` holds leading rows or images of the first batch.
    """

    scale: ActivationScale | None = None
    missing: str = ""
    sample: Tensor | None = None


@dataclass
class Calibration(Mapping[str, ActivationScale]):
    """Scales of the inputs of a model's layers, by the layers' names, from `batches` batches.

    `method` is the observer's (`sparseinfer.quantize.OBSERVERS`). Layers that no batch reached, or
    that only met zeros, have no entry, and the last projection of an attention has none either;
    `inputs` has their reasons.
    """

    inputs: dict[str, LayerInputs]
    batches: int = 0
    method: str = "mse"

    def __getitem__(self, name: str) -> ActivationScale:
        scale = self.inputs[name].scale
        if scale is None:
            raise KeyError(name)
        return scale

    def __iter__(self) -> Iterator[str]:
        return (name for name, seen in self.inputs.items() if seen.scale is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def calibrate(model: nn.Module, data: Any, *, method: str = "mse") -> Calibration:
    """Find the scale and zero point of the input of every linear layer and convolution.

    The model runs once on all data, in evaluation mode without gradients, and is as before
    afterwards. `data` is a batch as `example_inputs` of `convert_to_sparse` is (a tensor, a tuple
    of positional arguments, a dict of keyword arguments), or an iterable of those, such as a
    DataLoader; of a list that a DataLoader makes of inputs and labels the first is the input.
    Batches in a tuple, such as `x.split(16)` gives, have to become a list.
    A few hundred samples like those that the model will meet are enough.

    Args:
        model: the model, pruned already.
        data: what it is called with.
        method: `minmax`, `percentile` (99.99) or `mse`.

    Raises:
        TypeError: `model` is not an nn.Module, or the data is none of the above.
        ValueError: the method is unknown, there is no batch or an empty one, the model does not
            take a batch, or an input of a layer holds NaN or Inf.

    Example:
        >>> import torch
        >>> found = calibrate(nn.Sequential(nn.Linear(4, 2)), torch.rand(16, 4), method="minmax")
        >>> found["0"].zero_point, found.batches
        (0, 1)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"expected an nn.Module, got {type(model).__name__}; try calibrate(model, data)"
        )
    layers = {layer.name: layer.module for layer in scan(model) if layer.kind in QUANTIZED_KINDS}
    return Calibration(*watch_inputs(model, layers, data, method), method)


def watch_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], data: Any, method: str = "mse"
) -> tuple[dict[str, LayerInputs], int]:
    """The inputs of these layers of `model` on the data, and the number of batches.

    Raises:
        TypeError, ValueError: see `calibrate`.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 2)
        >>> found, batches = watch_inputs(layer, {"": layer}, [torch.rand(8, 4)] * 3)
        >>> found[""].sample.shape, batches
        (torch.Size([8, 4]), 3)
    """
    watches = {name: _Watch(name, layer, observer(method)) for name, layer in layers.items()}
    batches = 0
    for example in batches_of(data):
        _check_filled(example, batches)
        try:
            run_on(model, [example], [watch.register() for watch in watches.values()])
        except (_Unfit, TypeError, RuntimeError, IndexError) as error:
            if isinstance(error, _Unfit):
                raise ValueError(f"{error} in batch {batches} of the calibration data") from None
            raise ValueError(
                f"expected calibration data that the model takes, got batch {batches} of "
                f"{_shapes(example)}, on which it raised {brief(error)}; {_instead(data)}"
            ) from error
        batches += 1
    if batches == 0:
        raise ValueError(
            "expected calibration data, got no batch; try a few hundred samples of the training "
            "data, and a new iterator where one was used up"
        )
    return {name: watch.result() for name, watch in watches.items()}, batches


def _instead(data: Any) -> str:
    if isinstance(data, tuple) and len(data) > 1:
        return "a tuple is the arguments of one call: try list(...) of it where it holds batches"
    return "try model(batch) with it, or [(x,) for x, _ in loader] where batches hold labels"


class _Unfit(Exception):
    """An input that cannot be calibrated from."""


class _Watch:
    """One layer's observer and sample."""

    def __init__(self, name: str, layer: nn.Module, seen: Observer) -> None:
        self.name, self.layer, self.seen = name, layer, seen
        self.sample: Tensor | None = None

    def register(self) -> Any:
        return called(self.layer).register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(self.layer, Projection):
            x = self.layer.read(args, kwargs)
        else:
            x = args[0] if args else kwargs.get("input")
        # The input of an attention's last projection is made inside: only its shape is known.
        if not isinstance(x, Tensor) or x.is_nested or x.is_meta or x.numel() == 0:
            return
        try:
            self.seen.observe(x)
        except (TypeError, ValueError) as error:
            raise _Unfit(f"{error}; that was the input of {self.name or 'the model'}") from None
        if self.sample is None:
            whole = x.detach().float()
            if x.dim() > 1:
                own = max(1, whole[0].numel())
                whole = whole[: max(1, SAMPLE_ELEMENTS // own)]
            self.sample = whole.clone()

    def result(self) -> LayerInputs:
        try:
            return LayerInputs(self.seen.result(), "", self.sample)
        except ValueError as error:
            return LayerInputs(None, str(error), self.sample)


def batches_of(data: Any) -> Iterator[Example]:
    """The calls that calibration data stands for, see `calibrate`.

    Raises:
        TypeError: it is none of its forms.

    Example:
        >>> import torch
        >>> [args[0].shape[0] for args, _ in batches_of([torch.rand(4, 2), [torch.rand(3, 2), 7]])]
        [4, 3]
    """
    if isinstance(data, Tensor | tuple | Mapping):
        yield from list_examples(data)
        return
    if not isinstance(data, Iterable) or isinstance(data, str | bytes | nn.Module):
        raise TypeError(
            "expected calibration data as a tensor, a tuple, a dict or an iterable of those, got "
            f"{type(data).__name__}; try a DataLoader of samples"
        )
    for batch in data:
        # A DataLoader gives inputs and labels as a list.
        yield from list_examples(batch[0] if isinstance(batch, list) and batch else batch)


def _check_filled(example: Example, place: int) -> None:
    tensors = _tensors(example)
    if not tensors or any(tensor.numel() == 0 for tensor in tensors):
        raise ValueError(
            f"expected calibration batches with elements, got batch {place} of "
            f"{_shapes(example)}; try leaving empty ones out"
        )


def _tensors(example: Example) -> Sequence[Tensor]:
    args, kwargs = example
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def _shapes(example: Example) -> str:
    shapes = [str(list(tensor.shape)) for tensor in _tensors(example)]
    return ", ".join(shapes) or "no tensor"
