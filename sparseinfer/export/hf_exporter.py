"""What transformers' exporters need to know of engines: a back end of its own, called sparseinfer.

Imported once `transformers.exporters.auto` is; it registers itself.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.exporters import auto
from transformers.exporters.base import HfExporter
from transformers.exporters.configs import DynamoConfig, ExportConfigMixin, ExportFormat
from transformers.exporters.exporter_dynamo import DynamoExporter
from transformers.exporters.metadata import ExportMetadata
from transformers.exporters.runners.base import ModelRunner

from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine, load_engine
from sparseinfer.export.signature import tensors_of

__all__ = ["EngineConfig", "EngineExporter", "EngineRunner"]

FORMAT = "sparseinfer"


@dataclass
class EngineConfig(ExportConfigMixin):
    """How a model becomes an engine: the words of `sparseinfer.compile`.

    `dynamic`: the batch, dimension 0 of every input, may vary.

    Example:
        >>> EngineConfig(weights="bfloat16").export_format
        'sparseinfer'
    """

    export_format: ExportFormat | str = FORMAT
    dynamic: bool = False
    threads: int | None = None
    weights: str = "float32"
    activations: str | None = None
    calibration: Any = None
    target: str | None = None
    check: bool = True
    golden: bool = False


class EngineExporter(HfExporter):
    """Exports a transformers model as transformers does for torch.export, and compiles that.

    Raises, beside what transformers does, what `sparseinfer.compile` does.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = BertModel(BertConfig(vocab_size=9, intermediate_size=8, **small)).eval()
        >>> inputs = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
        >>> exported = EngineExporter().export(model, inputs, EngineConfig())
        >>> exported(**inputs).last_hidden_state.shape
        torch.Size([1, 4, 8])
    """

    export_format = FORMAT
    config_class = EngineConfig
    program_suffix = ".sinf"

    def export_program(
        self, model: Any, sample_inputs: MutableMapping[str, Any], config: ExportConfigMixin
    ) -> tuple[Engine, ExportMetadata]:
        assert isinstance(config, EngineConfig)  # as the caller has checked
        shapes: dict[str, Any] | None = None
        if config.dynamic:
            sample_inputs = {name: _several(x) for name, x in sample_inputs.items()}
            shapes = {
                name: {0: torch.export.Dim.AUTO} if isinstance(x, torch.Tensor) else None
                for name, x in sample_inputs.items()
            }
        plain = DynamoConfig(dynamic_shapes=shapes)
        program, metadata = DynamoExporter().export_program(model, sample_inputs, plain)
        engine = compile(
            program, dynamic="batch" if config.dynamic else None, threads=config.threads,
            weights=config.weights, activations=config.activations,
            calibration=config.calibration, target=config.target, check=config.check,
            golden=config.golden, baselines=(),
        )  # fmt: skip
        return engine, metadata

    @classmethod
    def save_program(cls, program: Engine, path: str | Path) -> None:
        program.save(path)

    @classmethod
    def load_program(cls, path: str | Path) -> Engine:
        return load_engine(path)


def _several(x: Any) -> Any:
    """A batch of more than one sample, of which torch.export takes no size for a constant."""
    return torch.cat([x, x]) if isinstance(x, torch.Tensor) and len(x) == 1 else x


class EngineRunner(ModelRunner):
    """Runs an engine with the model's own arguments and outputs."""

    def __init__(self, engine: Engine, metadata: ExportMetadata) -> None:
        super().__init__(metadata)
        self.engine = engine

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @classmethod
    def from_program(
        cls, program: Engine, metadata: ExportMetadata, device: Any = None
    ) -> EngineRunner:
        """Engines run on the CPU.

        Raises:
            ValueError: another device is asked for.
        """
        if device is not None and torch.device(device).type != "cpu":
            raise ValueError(
                f"expected the CPU for an engine, got {device}; try "
                "sparseinfer.convert_to_sparse, which runs on a GPU"
            )
        return cls(program, metadata)

    def __call__(
        self, share_inputs: bool = True, share_outputs: bool = False, **kwargs: Any
    ) -> Any:
        # What is no tensor was fixed as it was exported.
        names = {name for name, _ in self.engine.inputs}
        found = self.engine(**{name: x for name, x in kwargs.items() if name in names})
        return self.unflatten(list(tensors_of(found)))


auto.register_backend(EngineExporter, EngineRunner)
