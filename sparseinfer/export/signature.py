"""How an engine is called: as its model was, with tensors where the example had tensors.

It is kept in the file as JSON, so that an engine that was loaded is called as the one that was
compiled. Outputs come back as tensors, tuples, lists and `Outputs`, whatever classes the model's
own were.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

__all__ = ["Outputs", "Signature", "arguments_of", "signature_of", "tensors_of"]

_PLAIN = (bool, int, float, str, type(None))


class Outputs(dict[str, Any]):
    """Named outputs, by key and as attributes.

    Example:
        >>> import torch
        >>> found = Outputs(logits=torch.zeros(1))
        >>> found.logits is found["logits"]
        True
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Signature:
    """The names of a model's parameters in order, of its tensors, and what else is fixed.

    `defaults` are what a call that leaves an argument out means by that. `outputs` is the number of
    a tensor, None, or a structure of those: `["tuple", ...]`, `["list", ...]` or `["dict", {...}]`.

    Example:
        >>> import torch
        >>> signature = Signature(["x", "mask"], ["x"], {"mask": None}, {"mask": None}, 0)
        >>> len(signature.bind((torch.zeros(1),), {}))
        1
    """

    parameters: list[str]
    tensors: list[str]
    fixed: dict[str, Any]
    defaults: dict[str, Any]
    outputs: Any

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The values of the tensors of one call, in the order of the file.

        Raises:
            TypeError: there are too many or too few arguments, or one that no parameter takes.
            ValueError: an argument that is no tensor, or its default where the call leaves it out,
                is not what it was in the example.
        """
        if len(args) > len(self.parameters):
            raise TypeError(
                f"expected at most {len(self.parameters)} positional arguments, got {len(args)}; "
                f"try {', '.join(self.tensors)}"
            )
        given = dict(zip(self.parameters, args, strict=False))
        for name, value in kwargs.items():
            if name in given or name not in self.parameters:
                why = "twice" if name in given else "which the model does not take"
                raise TypeError(
                    f"expected {', '.join(self.tensors)}, got {name} {why}; try it without"
                )
            given[name] = value
        given = {**self.defaults, **given}
        lacking = [name for name in self.tensors if given.get(name) is None]
        if lacking:
            raise TypeError(
                f"expected {len(self.tensors)} tensors, {', '.join(self.tensors)}, got none for "
                f"{', '.join(lacking)}; try the arguments that the engine was compiled with"
            )
        lacking = [name for name in self.fixed if name not in given]
        if lacking:
            raise TypeError(
                f"expected {', '.join(self.fixed)} as in the example, got none for "
                f"{', '.join(lacking)}; try the arguments that the engine was compiled with"
            )
        for name, value in given.items():
            if name not in self.tensors and not _same(value, self.fixed.get(name)):
                raise ValueError(
                    f"expected {name} to be {self.fixed.get(name)!r}, as in the example, got "
                    f"{value!r}; try to compile an engine for that"
                )
        return [given[name] for name in self.tensors]

    def plain_count(self) -> int:
        """With how many positional arguments a call gives the tensors, in order; -1: never.

        Example:
            >>> Signature(["x", "scale"], ["x"], {"scale": 2}, {"scale": 2}, 0).plain_count()
            1
        """
        count = len(self.tensors)
        if self.parameters[:count] != self.tensors:
            return -1
        try:
            self.bind([()] * count, {})
        except (TypeError, ValueError):
            return -1
        return count

    def give(self, tensors: Sequence[Tensor]) -> Any:
        """The outputs of one call, in the model's structure."""
        return _built(self.outputs, tensors)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode("utf-8")

    @staticmethod
    def from_json(data: bytes, outputs: int) -> Signature:
        """What `to_json` wrote, of a file with so many outputs.

        Raises:
            ValueError: it is something else.
        """
        try:
            found = json.loads(data.decode("utf-8"))
            parts = Signature(
                found["parameters"], found["tensors"], found["fixed"], found["defaults"],
                found["outputs"],
            )  # fmt: skip
            _check(parts, outputs)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"expected a model file with the signature of its model, got none that can be read "
                f"({error}); try exporting the model again"
            ) from None
        return parts


def signature_of(
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    outputs: Any,
    is_tensor: Sequence[bool],
) -> Signature:
    """The signature of a call; `outputs` is torch.export's tree of them, of tensors and Nones.

    Raises:
        TypeError: an argument is neither a tensor nor a plain value, or the model gives tensors in
            something else than tuples, lists and dicts.

    Example:
        >>> import torch
        >>> import torch.utils._pytree as pytree
        >>> tree = pytree.tree_structure((None, torch.zeros(1)))
        >>> forward = lambda x, scale=2: (None, x)
        >>> signature = signature_of(forward, (torch.zeros(1),), {}, tree, [False, True])
        >>> signature.fixed, signature.outputs
        ({'scale': 2}, ['tuple', None, 0])
    """
    parameters, given = arguments_of(forward, args, kwargs)
    defaults = {
        own.name: own.default
        for own in inspect.signature(forward).parameters.values()
        if isinstance(own.default, _PLAIN)
    }
    tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
    fixed = {name: value for name, value in (defaults | given).items() if name not in tensors}
    numbers = itertools.count()
    leaves = iter([next(numbers) if one else None for one in is_tensor])
    return Signature(parameters, tensors, fixed, defaults, _structure(outputs, leaves))


def arguments_of(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """The names of all parameters in order, and the arguments by name.

    Raises:
        TypeError: one is neither a tensor nor a plain value.

    Example:
        >>> arguments_of(lambda x, scale=2: x, (None,), {})
        (['x', 'scale'], {'x': None})
    """
    named = inspect.signature(forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [own.name for own in named if own.kind in positional]
    more = next((own.name for own in named if own.kind is own.VAR_POSITIONAL), None)
    while more is not None and len(parameters) < len(args):
        parameters.append(f"{more}_{len(parameters)}")
    given = dict(zip(parameters, args, strict=False)) | dict(kwargs)
    parameters += [own.name for own in named if own.kind is own.KEYWORD_ONLY]
    parameters += [name for name in kwargs if name not in parameters]
    for name, value in given.items():
        if not isinstance(value, (Tensor, *_PLAIN)):
            raise TypeError(
                f"expected tensors and plain values as example inputs, got {type(value).__name__} "
                f"for {name}; try a module around the model that takes its tensors one by one"
            )
    return parameters, given


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors in what a model or an engine gives, in order, whatever holds them.

    Torch's trees know only the classes that were registered.

    Example:
        >>> import torch
        >>> len(tensors_of({"y": torch.zeros(1), "cache": [None, torch.zeros(2)]}))
        2
    """
    if isinstance(outputs, Tensor):
        return [outputs]
    named = hasattr(outputs, "values")
    if not named and not isinstance(outputs, tuple | list):
        return []
    parts = outputs.values() if named else outputs
    return [tensor for part in parts for tensor in tensors_of(part)]


def _structure(tree: Any, leaves: Iterator[int | None]) -> Any:
    """A tree of torch's as JSON has it."""
    if tree.is_leaf():
        return next(leaves)
    parts = [_structure(child, leaves) for child in tree.children()]
    if tree.type in (tuple, list):
        return [tree.type.__name__, *parts]
    keys = tree.context
    if isinstance(keys, list) and len(keys) == len(parts) and all(isinstance(k, str) for k in keys):
        return ["dict", dict(zip(keys, parts, strict=True))]
    raise TypeError(
        "expected a model that gives tensors in tuples, lists and dicts, got "
        f"{tree.type.__name__}; try a module around it that does"
    )


def _built(structure: Any, tensors: Sequence[Tensor]) -> Any:
    if structure is None:
        return None
    if type(structure) is int:
        return tensors[structure]
    kind = structure[0]
    if kind == "dict":
        return Outputs({key: _built(part, tensors) for key, part in structure[1].items()})
    parts = [_built(part, tensors) for part in structure[1:]]
    return tuple(parts) if kind == "tuple" else parts


def _check(signature: Signature, outputs: int) -> None:
    """That the parts are what they should be, whoever wrote them."""
    lists, dicts = (signature.parameters, signature.tensors), (signature.fixed, signature.defaults)
    if not all(isinstance(part, list) for part in lists):
        raise ValueError("its names are no list")
    if not all(isinstance(part, dict) for part in dicts):
        raise ValueError("its fixed arguments are no dict")
    if not all(isinstance(name, str) for part in lists for name in part):
        raise ValueError("a name is no text")
    if not set(signature.tensors) <= set(signature.parameters):
        raise ValueError("a tensor is no parameter")
    if not all(isinstance(value, _PLAIN) for part in dicts for value in part.values()):
        raise ValueError("a fixed argument is no plain value")
    _check_structure(signature.outputs, outputs)


def _check_structure(structure: Any, outputs: int) -> None:
    if structure is None:
        return
    if type(structure) is int:
        if not 0 <= structure < outputs:
            raise ValueError(f"it has no output {structure}")
        return
    if not isinstance(structure, list) or structure[:1] not in (["tuple"], ["list"], ["dict"]):
        raise ValueError("its outputs have an unknown structure")
    parts = structure[1:]
    if structure[0] == "dict":
        if len(parts) != 1 or not isinstance(parts[0], dict):
            raise ValueError("its named outputs are no dict")
        parts = list(parts[0].values())
    for part in parts:
        _check_structure(part, outputs)


def _same(value: Any, fixed: Any) -> bool:
    """Whether two plain values are one: by what they print, NaN is itself and -0.0 is not 0.0."""
    return type(value) is type(fixed) and repr(value) == repr(fixed)
