"""Engines as a back end of transformers' exporters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformer_networks import bert

import sparseinfer
from sparseinfer.export.errors import UnsupportedOperators

exporters = pytest.importorskip("transformers.exporters")


def exported(model: Any, inputs: Any, **options: Any) -> Any:
    config = exporters.AutoExportConfig.from_dict({"export_format": "sparseinfer", **options})
    return exporters.AutoHfExporter.from_config(config).export(model, inputs, config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_model_is_exported_saved_and_loaded(dynamic: bool, tmp_path: Path) -> None:
    model, inputs = bert()
    example = {name: x[:1] for name, x in inputs.items()} if dynamic else inputs
    found = exported(model, example, dynamic=dynamic, golden=True, threads=1)
    assert isinstance(found.program, sparseinfer.Engine) and found.program.threads == 1
    assert found.program.selftest() <= 1
    found.save_pretrained(tmp_path)
    assert (tmp_path / "model.sinf").is_file()
    loaded = exporters.ExportedModel.from_pretrained(tmp_path)
    for batch in (2, 1, 5) if dynamic else (2,):
        other = {name: torch.cat([x.flip(0)] * 3)[:batch] for name, x in inputs.items()}
        y, own = loaded(**other), model(**other)
        assert type(y) is type(own)
        assert torch.allclose(y.last_hidden_state, own.last_hidden_state, atol=1e-5)
    with pytest.raises(ValueError, match="expected the CPU for an engine, got cuda"):
        loaded.to("cuda")


@pytest.mark.filterwarnings("ignore")
def test_what_no_engine_computes_is_refused() -> None:
    model, inputs = bert()
    model.embeddings.LayerNorm.register_forward_hook(lambda layer, args, y: y.cumsum(1))
    with pytest.raises(UnsupportedOperators, match=r"aten\.cumsum\.default in 'embeddings"):
        exported(model, inputs)
