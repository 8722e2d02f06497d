"""Exported programs (`.pt2`): compiled as their models are, and read with nothing in them run."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import prune, resnet, simple_cnn
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparseinfer.export.compile import compile
from sparseinfer.export.program import load_program, module_of


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def saved(model: nn.Module, path: Path, *args: Tensor, **kwargs: Any) -> Path:
    torch.export.save(torch.export.export(model, args, kwargs), path)
    return path


@pytest.mark.parametrize("network", [simple_cnn, lambda: resnet("basic", 0.25, 1)])
def test_programs_are_compiled(network: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, x = network(), torch.randn(1, 3, 32, 32)
    prune(model, 0.8)
    program = load_program(saved(model, tmp_path / "model.pt2", x))
    engine = compile(program, baselines=())
    own = compile(model, x, baselines=())
    assert torch.equal(engine(x), own(x))
    assert [node["name"] for node in engine.report().nodes] == [
        node["name"] for node in own.report().nodes
    ]
    assert torch.equal(compile(program, torch.zeros_like(x), baselines=())(x), own(x))


def test_programs_of_masked_models(tmp_path: Path) -> None:
    model, x = simple_cnn(), torch.randn(1, 3, 32, 32)
    for index in (3, 7):
        torch_prune.l1_unstructured(model[index], "weight", amount=0.9)
    program = load_program(saved(model, tmp_path / "model.pt2", x))
    engine = compile(program, baselines=())
    assert torch.allclose(engine(x), model(x), atol=1e-5)
    assert sum(node["nnz"] < 0.2 * node["weights"] for node in engine.report().nodes) == 2
    for own in (model, program):
        found = engine.compare(own, x)
        assert found.first is None and all(node.error is not None for node in found.nodes)


class Keyed(nn.Module):
    def forward(self, x: Tensor, *, y: Tensor, twice: bool = False) -> dict[str, Tensor]:
        return {"sum": x + y if not twice else x + x + y}


def test_programs_with_keywords(tmp_path: Path) -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    program = load_program(saved(Keyed().eval(), tmp_path / "model.pt2", x, y=y))
    engine = compile(program, baselines=())
    assert torch.equal(engine(x, y=y)["sum"], x + y)


def test_a_program_without_an_example() -> None:
    program = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    program._example_inputs = None
    with pytest.raises(
        ValueError, match="expected example inputs, got a program that carries none"
    ):
        compile(program, baselines=())
    assert compile(program, torch.zeros(2), baselines=())(torch.ones(2)).tolist() == [1.0, 1.0]
    assert not any(part.training for part in module_of(program).modules())


def changed(path: Path, change: Callable[[str, bytes], bytes], more: dict[str, bytes]) -> Path:
    """The archive with entries changed, and some added."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    root = next(iter(entries)).split("/")[0]
    entries = {name: change(name, content) for name, content in entries.items()}
    entries |= {f"{root}/{name}": content for name, content in more.items()}
    out = path.with_name("changed.pt2")
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out


class Marks:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def as_json(part: str, old: str, new: str) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if part not in name:
            return content
        assert old.encode() in content
        return content.replace(old.encode(), new.encode())

    return change


def same(name: str, content: bytes) -> bytes:
    return content


@pytest.mark.parametrize(
    ("change", "more", "text"),
    [
        (as_json("weights_config", '"use_pickle": false', '"use_pickle": true'), {}, "pickled"),
        (as_json("weights_config", '"weight_0"', '"opaque_obj_0"'), {}, "opaque_obj_0"),
        (as_json("model.json", "torch.ops.aten.relu.default", "torch.load"), {}, "torch.load"),
        (as_json("model.json", "torch.ops.aten.relu.default", "torch.ops.load_library"), {},
         "load_library"),
        (as_json("model.json", "torch.ops.aten.relu.default", "math.sin"), {}, "math.sin"),
        (as_json("model.json", "torch.ops.aten.relu.default", "_operator.call"), {}, "call"),
        (as_json("model.json", "torch.ops.aten.relu.default", "#x.y"), {}, "#x.y"),
        (as_json("model.json", '"guards_code": []', '"guards_code": ["1"]'), {}, "guards"),
        (as_json("model.json", '{"as_int": 4}', '{"as_expr": {"expr_str": "s0"}}'), {},
         "expressions"),
        (same, {"data/aotinductor/model/model.so": b"\x7fELF"}, "aotinductor"),
        (same, {"serialized_state_dict.pt": b""}, "serialized_state_dict"),
    ],
)  # fmt: skip
def test_what_may_run_anything_is_refused(
    change: Any, more: dict[str, bytes], text: str, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    path = changed(saved(model, tmp_path / "model.pt2", torch.zeros(1, 4)), change, more)
    with pytest.raises(ValueError, match=rf"changed\.pt2: .*plain tensors, got .*{text}.*trust"):
        load_program(path)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_pickles_are_not_read_unless_trusted(kind: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    stream = io.BytesIO()
    objects = (((torch.zeros(1, 4),), {}), Marks(mark))
    if kind == "torch":
        torch.save(objects, stream)
    else:
        stream.write(pickle.dumps(objects))
    content = stream.getvalue()

    def change(name: str, own: bytes) -> bytes:
        return content if "sample_inputs" in name else own

    path = changed(saved(nn.ReLU(), tmp_path / "model.pt2", torch.zeros(1, 4)), change, {})
    with pytest.raises(ValueError, match=r"objects in .* that are no tensors"):
        load_program(path)
    assert not mark.exists()
    if kind == "torch":
        try:
            load_program(path, trust=True)
        except ValueError:
            pass
        assert mark.exists()


def test_what_is_no_program(tmp_path: Path) -> None:
    whole = saved(nn.Linear(4, 2).eval(), tmp_path / "model.pt2", torch.zeros(1, 4)).read_bytes()
    path = tmp_path / "other.pt2"
    for content in (b"", b"hello", b"PK\x03\x04", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        for trust in (False, True):
            with pytest.raises(
                ValueError, match=r"other\.pt2: expected a (file that|program of) torch"
            ):
                load_program(path, trust=trust)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"other\.pt2: expected"):
        load_program(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/models/model.json", json.dumps({"zeros": "0" * 100_000}))
    with pytest.raises(ValueError, match="which is compressed"):
        load_program(path)
    with pytest.raises(OSError):
        load_program(tmp_path / "none.pt2")
    with pytest.raises(OSError):
        load_program(tmp_path)


def test_packed_for_a_target() -> None:
    model, x = nn.Linear(512, 512).eval(), torch.zeros(1, 512)
    prune(nn.Sequential(model), 0.9)
    own = compile(model, x, baselines=())
    other = compile(model, x, baselines=(), target="aarch64-neon")
    assert torch.allclose(own(x + 1), other(x + 1), atol=1e-5)
    with pytest.raises(ValueError, match="expected a target of host"):
        compile(model, x, baselines=(), target="z80")
