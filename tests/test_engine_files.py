"""Files of engines: damaged and hostile ones are errors, and a failed save leaves the old one."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine, load_engine
from sparseinfer.export.file import OPERATORS, write_graph
from sparseinfer.export.from_torch import from_torch
from sparseinfer.export.signature import Signature
from sparseinfer.native import seal_model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    compile(model, torch.zeros(2, 6), baselines=()).save(tmp_path / "model.sinf")
    return tmp_path / "model.sinf"


def test_damaged_files(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    damaged = tmp_path / "damaged.sinf"
    for size in range(0, len(whole), 7):
        damaged.write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match=r"damaged\.sinf: (model file is corrupt|.*an empty one)"
        ):
            load_engine(damaged)
    for at in range(0, len(whole), 11):
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises((ValueError, RuntimeError), match=r"damaged\.sinf: "):
            load_engine(damaged)
    damaged.write_bytes(whole + b"\0" * 64)
    with pytest.raises(ValueError, match="and it has"):
        load_engine(damaged)


def test_files_of_others(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        load_engine(tmp_path / "none.sinf")
    with pytest.raises(OSError):
        load_engine(tmp_path)
    (tmp_path / "text.sinf").write_text("hello " * 100)
    with pytest.raises(ValueError, match="does not begin as a model file"):
        load_engine(tmp_path / "text.sinf")
    whole = bytearray(saved.read_bytes())
    whole[8:12] = struct.pack("<I", 2)
    (tmp_path / "later.sinf").write_bytes(whole)
    with pytest.raises(RuntimeError, match="expected a model file of version 1, got version 2"):
        load_engine(tmp_path / "later.sinf")
    with pytest.raises(ValueError, match="expected threads >= 1, got -1"):
        load_engine(saved, threads=-1)


def written(**parts: Any) -> bytes:
    """A signature as no `Signature` has it."""
    right = {"parameters": ["x"], "tensors": ["x"], "fixed": {}, "defaults": {}, "outputs": 0}
    return json.dumps(right | parts).encode()


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "metadata",
    [
        b"", b"{}", b"[]", b"\xff", b'{"parameters": ["x"]}', b"[" * 100_000, b"1" * 5000,
        Signature(["x"], ["x"], {}, {}, 1).to_json(),
        Signature(["x"], ["x"], {}, {}, -1).to_json(),
        Signature(["x"], ["x"], {}, {}, True).to_json(),
        Signature(["x"], ["x"], {}, {}, ["set", 0]).to_json(),
        Signature(["x"], ["x"], {}, {}, []).to_json(),
        Signature(["x"], ["x", "y"], {}, {}, 0).to_json(),
        Signature(["x", "y"], ["x", "y"], {}, {}, 0).to_json(),
        Signature(["x"], [], {}, {}, 0).to_json(),
        Signature(["x"], ["x"], {"y": [1]}, {}, 0).to_json(),
        Signature(["x"], ["x"], {}, {"y": [1]}, 0).to_json(),
        written(parameters=[1], tensors=[1]),
        written(parameters="x"),
        written(tensors={"x": 0}),
        written(fixed=[]),
        written(fixed=["ab"]),
        written(defaults=[]),
        written(outputs=["tuple", None, 1]),
    ],
)  # fmt: skip
def test_signatures_of_others(metadata: bytes) -> None:
    graph, _ = from_torch(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),), {})
    with pytest.raises(ValueError, match=r"expected a (model file with the )?signature"):
        Engine(write_graph(graph, metadata), 1)


@pytest.mark.parametrize("name", [b"\xff", b"a\x80", b"\xed\xa0\x80"])
def test_names_that_are_no_text(name: bytes, saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    assert whole.count(b"input\0") == 1
    changed = whole.replace(b"input\0", name.ljust(5, b"_") + b"\0")
    (tmp_path / "names.sinf").write_bytes(changed)
    memory = torch.zeros(len(changed) + 64, dtype=torch.uint8)
    file = memory[-memory.data_ptr() % 64 :][: len(changed)]
    file[:] = torch.frombuffer(bytearray(changed), dtype=torch.uint8)
    with pytest.raises(ValueError, match="a name is not UTF-8"):
        seal_model(file.data_ptr(), len(file))
    with pytest.raises(ValueError, match=r"names\.sinf: model file is corrupt"):
        load_engine(tmp_path / "names.sinf")


def test_a_file_that_is_mapped(saved: Path, tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    engine, mapped = load_engine(saved), load_engine(saved, mmap=True)
    assert torch.equal(engine(x), mapped(x))
    # Saving renames a new file: what is mapped stays as it was.
    other = nn.Sequential(nn.Linear(6, 3)).eval()
    compile(other, torch.zeros(2, 6), baselines=()).save(saved)
    assert torch.equal(engine(x), mapped(x))
    mapped.save(saved)
    assert torch.equal(load_engine(saved, mmap=True)(x), engine(x))
    whole = saved.read_bytes()
    for content, text in ((b"", "an empty one"), (whole[:99], "corrupt"), (whole[:-1], "corrupt")):
        (tmp_path / "bad.sinf").write_bytes(content)
        with pytest.raises(ValueError, match=text):
            load_engine(tmp_path / "bad.sinf", mmap=True)
    with pytest.raises(OSError):
        load_engine(tmp_path, mmap=True)


def test_a_failed_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    engine = load_engine(saved)

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        engine.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_numbers_are_those_of_the_library() -> None:
    table = (ROOT / "csrc" / "runtime" / "operators.inc").read_text("utf-8")
    lines = [line for line in table.splitlines() if line.startswith("SI_OPERATOR(")]
    found = [line.removeprefix("SI_OPERATOR(").split(", ")[:2] for line in lines]
    assert {name: int(number) for number, name in found} == OPERATORS
    page = (ROOT / "csrc" / "runtime" / "FORMAT.md").read_text("utf-8")
    assert all(f"| {number} | {name} |" in page for name, number in OPERATORS.items())
