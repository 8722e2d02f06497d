"""`save_pretrained` of converted transformers models; transformers is never imported here.

transformers saves whatever tensors a model has, and starts the layers whose weights it then does
not find with random values, after a warning. A converted model therefore says in its `config.json`
what is packed (`quant_method` "sparseinfer", read by `sparseinfer.checkpoints.hf_quantizer`), and
its weights have a name of their own: where sparseinfer is not imported, `from_pretrained` finds no
weights and raises.
"""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sparseinfer.layers.kinds import packed_layers

__all__ = [
    "LOADING", "METHOD", "VARIANT", "WEIGHTS_FILE", "dense_kernels", "forget_pretrained",
    "input_scales", "keep_pretrained", "packed_names",
]  # fmt: skip

METHOD = "sparseinfer"
"""The `quant_method` of `config.json`."""

VARIANT = "sparseinfer"
"""What transformers calls the files of another kind of weights beside `model.safetensors`."""

WEIGHTS_FILE = f"model.{VARIANT}.safetensors"

_DENSE_FILES = ("model.safetensors", "model.safetensors.index.json")
_PICKLED_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
LOADING = "transformers.core_model_loading"
"""What `sparseinfer.checkpoints.hf_quantizer` builds on: transformers has it since 5.0."""

_BASE = "PreTrainedModel", "transformers.modeling_utils"
_PART = "Module", "sentence_transformers.base.modules.module"
_HUB = "ModelHubMixin", "huggingface_hub.hub_mixin"


def keep_pretrained(model: nn.Module) -> None:
    """Let `save_pretrained` of the transformers models in `model` that hold sparse layers write
    what `from_pretrained` gives back, and `save` of other modules of sentence-transformers.

    What loads dense weights only is saved dense: those modules, and the user's own models with
    huggingface_hub's mixin, whose `from_pretrained` passes over the weights that it does not find.

    Example:
        >>> keep_pretrained(nn.Linear(2, 2))  # nothing to do
    """
    for module in _of_class(model, _BASE):
        if packed_names(module):
            vars(module)["save_pretrained"] = partial(_save_pretrained, module)
    for module in _of_class(model, _PART):
        if packed_names(module) and not _of_class(module, _BASE):
            vars(module)["save"] = partial(_save_dense, module, "save")
    for module in _of_class(model, _HUB):
        if packed_names(module):
            vars(module)["_save_pretrained"] = partial(_save_dense, module, "_save_pretrained")


def forget_pretrained(model: nn.Module) -> None:
    """Undo `keep_pretrained`, for a model whose layers are dense again.

    Example:
        >>> forget_pretrained(nn.Linear(2, 2))
    """
    for cls, name in ((_PART, "save"), (_HUB, "_save_pretrained")):
        for module in _of_class(model, cls):
            vars(module).pop(name, None)
    for module in _of_class(model, _BASE):
        if vars(module).pop("save_pretrained", None) is not None:
            quantizer = getattr(module, "hf_quantizer", None)
            if quantizer is not None:
                quantizer.remove_quantization_config(module)


def packed_names(model: nn.Module) -> dict[str, int]:
    """The packed weights of a model by their names in its state_dict, with their bytes.

    Example:
        >>> packed_names(nn.Sequential(nn.Linear(2, 2)))
        {}
    """
    return {
        f"{name}.packed".lstrip("."): module.packed.numel() for name, module in packed_layers(model)
    }


def input_scales(model: nn.Module) -> dict[str, list[float]]:
    """Scale and zero point of the inputs of int8 layers, by the names of the packed weights.

    Example:
        >>> input_scales(nn.Sequential(nn.Linear(2, 2)))
        {}
    """
    return {
        f"{name}.packed".lstrip("."): [scale.scale, scale.zero_point]
        for name, module in packed_layers(model)
        if (scale := module.activation_scale) is not None
    }


def dense_kernels(model: nn.Module) -> list[str]:
    """The names of the packed int8 weights that torch's dense kernel multiplies.

    Example:
        >>> dense_kernels(nn.Sequential(nn.Linear(2, 2)))
        []
    """
    return [
        f"{name}.packed".lstrip(".") for name, module in packed_layers(model) if module.runs_dense
    ]


def _of_class(model: nn.Module, named: tuple[str, str]) -> list[Any]:
    return [
        module for module in model.modules()
        if any((cls.__name__, cls.__module__) == named for cls in type(module).__mro__)
    ]  # fmt: skip


def _save_dense(module: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """A method that saves, such as `save` of sentence-transformers' `Dense`, of the dense copy."""
    from sparseinfer.convert.to_dense import to_dense

    return getattr(type(module), method)(to_dense(module), *args, **kwargs)


def _save_pretrained(
    model: Any, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
) -> Any:
    """`PreTrainedModel.save_pretrained`, with the packed weights in files of their own name."""
    if importlib.util.find_spec(LOADING) is None:
        raise ImportError(
            "expected transformers 5 or later to save a converted model, got an earlier one; try "
            "pip install --upgrade transformers, or sparseinfer.to_dense(model) first"
        )
    # What sparseinfer.checkpoints registers as transformers is imported.
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    make_config: Any = AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD]

    folder = Path(save_directory)
    for name in _PICKLED_FILES:  # transformers would leave it, and read it without our import
        if (folder / name).exists():
            raise FileExistsError(
                f"expected no weights of another model in {folder}, got {name}; try another "
                "folder, or removing it"
            )
    variant = kwargs.pop("variant", None)
    kwargs["variant"] = VARIANT if variant is None else f"{variant}.{VARIANT}"
    stem = f"model.{kwargs['variant']}.safetensors"
    config = model.config
    absent = object()
    before = vars(config).get("quantization_config", absent)
    try:
        config.quantization_config = make_config(
            stem, packed_names(model), input_scales=input_scales(model),
            dense_kernels=dense_kernels(model),
        )  # fmt: skip
        result = type(model).save_pretrained(model, save_directory, *args, **kwargs)
        index = folder / f"model.safetensors.index.{kwargs['variant']}.json"
        if index.exists():  # transformers opens an index of another name only if it ends so
            named = index.replace(folder / f"{stem}.index.json")
            config.quantization_config.weights = named.name
            config.save_pretrained(save_directory)
    finally:
        if before is absent:
            vars(config).pop("quantization_config", None)
        else:
            config.quantization_config = before
    for name in _DENSE_FILES:  # of an earlier save, which this one replaces
        (folder / name).unlink(missing_ok=True)
    return result
