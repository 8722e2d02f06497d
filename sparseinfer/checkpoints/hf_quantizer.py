"""What transformers' `from_pretrained` needs to know of sparse models: a quantizer of its own.

Imported once transformers is, see `sparseinfer.convert.pretrained`; it registers itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparseinfer.checkpoints.bitmask import PARTS, decompress
from sparseinfer.checkpoints.load_converted import empty_layers
from sparseinfer.convert.pretrained import METHOD, WEIGHTS_FILE, keep_pretrained
from sparseinfer.convert.replace import replace
from sparseinfer.convert.to_dense import to_dense
from sparseinfer.layers.kinds import packed_layers
from sparseinfer.quantize.activations import ActivationScale

__all__ = ["SparseinferConfig", "SparseinferHfQuantizer"]


class SparseinferConfig(QuantizationConfigMixin):
    """The `quantization_config` of a sparse model: the name of the file with its weights (None: the
    usual one), the names and bytes of packed ones, with the scales and zero points of the inputs of
    int8 ones and the names of those that torch's dense kernel multiplies, and the `sparsity_config`
    of compressed ones."""

    def __init__(
        self, weights: str | None = WEIGHTS_FILE, packed: Mapping[str, int] | None = None,
        sparsity_config: Mapping[str, Any] | None = None,
        input_scales: Mapping[str, Sequence[float]] | None = None,
        dense_kernels: Sequence[str] = (), **others: Any,
    ) -> None:  # fmt: skip
        self.quant_method = METHOD  # type: ignore[assignment]  # theirs is an enum of their own
        self.weights = weights
        self.packed = dict(packed or {})
        self.input_scales = dict(input_scales or {})
        self.dense_kernels = list(dense_kernels)
        if sparsity_config is not None:
            self.sparsity_config = dict(sparsity_config)
        if not self.packed:
            # What compressed weights become is an ordinary dense model.
            self.dequantize = True


class SparseinferHfQuantizer(HfQuantizer):
    """Puts empty sparse layers in the model for the packed weights that its file holds."""

    requires_calibration = True
    quantization_config: SparseinferConfig

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    def update_attn_implementation(self, config: Any) -> Any:
        # The one call before transformers looks for the file.
        if self.quantization_config.weights is not None:
            config.transformers_weights = self.quantization_config.weights
        return config

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        packed = _names_in(model, self.quantization_config.packed)
        replace(model, empty_layers(model, packed), inplace=True)
        for name, size in packed.items():
            layer = model.get_submodule(name.rpartition(".")[0])
            layer.packed = torch.empty(size, dtype=torch.uint8, device=layer.packed.device)
        self._set_scales(model)
        return model

    def _set_scales(self, model: Any) -> None:
        """Before the file is read, so that it finds their places, and after it, in full width."""
        for name, (scale, zero_point) in _names_in(
            model, self.quantization_config.input_scales
        ).items():
            layer = model.get_submodule(name.rpartition(".")[0])
            layer.set_activation_scale(ActivationScale(float(scale), int(zero_point)))
        for name in _names_in(model, dict.fromkeys(self.quantization_config.dense_kernels)):
            model.get_submodule(name.rpartition(".")[0]).mark_dense()

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        vars(model.config).pop("transformers_weights", None)
        for name, layer in packed_layers(model):
            try:
                layer.adopt_packed(layer.packed)
            except ValueError as invalid:
                raise ValueError(f"While loading {name}.packed: {invalid}") from invalid
        self._set_scales(model)
        keep_pretrained(model)
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        return to_dense(model, inplace=True)

    def get_weight_conversions(self) -> list[Any]:
        if not hasattr(self.quantization_config, "sparsity_config"):
            return []
        return [WeightConverter([*_SOURCES.values()], ".weight", [_Decompress(self)])]


def _sparse_too(other: Any) -> Any:
    """The config class of compressed-tensors, `other`, which no longer reads sparse formats, for
    all but those."""

    class Config(other):  # type: ignore[misc]
        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            sparsity = config_dict.get("sparsity_config") or {}
            if sparsity.get("format") in _FORMATS and not config_dict.get("config_groups"):
                return SparseinferConfig(None, sparsity_config=sparsity)
            return other.from_dict(config_dict, *args, **kwargs)

    return Config


_FORMATS = "sparse-bitmask", "sparse-24-bitmask"
_SOURCES = {part: rf"(?:\.weight)?\.{part}$" for part in PARTS}
"""Keys of a weight's parts, of before and since compressed-tensors 0.9."""


class _Decompress(ConversionOps):
    """The dense weight of the parts that `save_sparse` writes for it."""

    def __init__(self, quantizer: HfQuantizer) -> None:
        self.hf_quantizer = quantizer  # by which transformers tells that no part is to be cast

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str],
        **context: Any,
    ) -> dict[str, Any]:  # fmt: skip
        model, full_layer_name = context["model"], context["full_layer_name"]
        found = {part: input_dict.get(source) for part, source in _SOURCES.items()}
        parts = {part: tensors[0] for part, tensors in found.items() if tensors}
        weight = model.get_parameter(full_layer_name)
        dense = decompress(parts, full_layer_name).to(weight.dtype)
        return {full_layer_name: dense.reshape(weight.shape)}


def _names_in(model: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """The names of packed weights as `model` has them: a base model is loaded from the file of one
    with a head, and the other way round."""
    base, found = model.base_model_prefix, {}
    for name, size in names.items():
        for own in (name, name.removeprefix(f"{base}."), f"{base}.{name}"):
            first, *rest = own.split(".")
            inner = model._modules.get(first)
            if inner is not None and (first != base or rest[0] in inner._modules):
                found[own] = size
                break
    return found


auto.register_quantization_config(METHOD)(SparseinferConfig)
auto.register_quantizer(METHOD)(SparseinferHfQuantizer)
_known: Any = auto.AUTO_QUANTIZATION_CONFIG_MAPPING
_known["compressed-tensors"] = _sparse_too(_known["compressed-tensors"])
