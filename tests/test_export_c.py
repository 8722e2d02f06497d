"""Models as C: plain C that needs no library, and objects with the library's own file."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_c import (
    SANITIZED,
    WARNINGS,
    Make,
    amalgamated,
    bound_of,
    call,
    check_outputs,
    compiled,
    compiler,
    in_blocks,
    pruned,
    run_here,
    sources,
)
from networks import mobilenet_v2, resnet, simple_cnn
from random_graphs import random_network
from torch import Tensor, nn

from sparseinfer import cli
from sparseinfer.export.c.dimensions import DIMENSIONS
from sparseinfer.export.c.folder import files_of, write_folder
from sparseinfer.export.c.lacks import OPERATORS, NotInC, check_model
from sparseinfer.export.c.pieces import EMBEDDED, join_pieces
from sparseinfer.export.c.records import read_packed, read_records
from sparseinfer.export.compile import compile
from sparseinfer.formats.packed import pack


class Everything(nn.Module):
    """Every operator that plain C has, and every activation, beside one another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, (2, 1), (1, 2), (1, 2))
        self.depthwise = nn.Conv2d(12, 12, (3, 5), padding=(1, 2), groups=12)
        self.grouped = nn.Conv2d(12, 10, 1, groups=2, bias=False)
        self.even = nn.Conv2d(10, 5, 4, 3)
        self.signal = nn.Conv1d(5, 9, 3, padding=1)
        self.head = nn.Linear(54, 7)
        self.last = nn.Linear(7, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        functional = nn.functional
        x = functional.relu6(self.stem(x))
        x = x + functional.gelu(self.depthwise(x))
        x = functional.silu(self.grouped(x))
        x = torch.cat([functional.max_pool2d(x, 3, 1, 1), functional.avg_pool2d(x, 3, 1, 1)], 2)
        x = torch.tanh(self.even(x))
        pooled = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        x = functional.gelu(self.signal(x.flatten(2)), approximate="tanh")
        x = torch.sigmoid(self.head(x.flatten(1)))
        return torch.softmax(self.last(x), 1) + torch.tanh(pooled)


class Blocks(nn.Module):
    """Weights that are kept four in a row, of columns that four does not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, padding=1)
        self.down = nn.Conv2d(10, 6, 3, 2)
        self.fc = nn.Linear(54, 30)
        self.out = nn.Linear(30, 11)
        in_blocks(self, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.down(torch.relu(self.conv(x))))
        return self.out(torch.relu(self.fc(x.flatten(1))))


class Bytes(nn.Module):
    """What stands between layers of int8, and stays bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        functional = nn.functional
        x = functional.hardswish(self.stem(x))
        x = functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        y = functional.hardsigmoid(self.wide(functional.avg_pool2d(x, 3, 1, 1)))
        return self.last(torch.cat([x, y], 1)).flatten(1)


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(50, 67), nn.ReLU(), nn.Linear(67, 33), nn.ReLU(), nn.Linear(33, 10)]
    return pruned(nn.Sequential(*layers), 3, 50)


def whole_filters() -> tuple[nn.Module, Tensor]:
    """Rows that are pruned whole stand last, in an order of their own."""
    model = nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 24, 3, groups=2), nn.ReLU6(),
        nn.Flatten(), nn.Linear(24 * 16, 64), nn.ReLU(), nn.Linear(64, 9),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.data[1::2] = 0
    return pruned(model, 1, 3, 8, 8)


MODELS: dict[str, Make] = {
    "mlp": mlp,
    "cnn": lambda: pruned(simple_cnn(), 2, 3, 32, 32),
    "resnet": lambda: pruned(resnet("basic", 0.25, 1), 1, 3, 33, 33),
    "mobilenet_v2": lambda: pruned(mobilenet_v2(0.35, 3), 1, 3, 32, 32),
    "blocks": lambda: (Blocks().eval(), torch.randn(2, 3, 7, 7)),
    "whole_filters": whole_filters,
    "bytes": lambda: pruned(Bytes(), 2, 3, 9, 9),
}


LARGE = ("resnet", "mobilenet_v2")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in MODELS],
)
def test_plain_c_computes_what_the_library_does(tmp_path: Path, name: str, weights: str):
    torch.manual_seed(0)
    model, x = MODELS[name]()
    engine = compiled(model, x, weights)
    folder = amalgamated(engine, tmp_path / "net")
    exact = weights == "int8"
    # The sanitizers see what is read or written past the caller's buffers, and the context.
    check_outputs(engine, x, run_here(folder, x, options=SANITIZED), exact)
    another = x + 0.2 * torch.randn_like(x)
    check_outputs(engine, another, run_here(folder, another), exact)


def test_the_models_have_every_kind_of_weight():
    found = set()
    for name in ("mlp", "blocks", "whole_filters"):
        torch.manual_seed(0)
        model, x = MODELS[name]()
        records = read_records(bytes(compiled(model, x, "int8").file.numpy()))
        packed = [read_packed(tensor.data) for tensor in records.tensors if tensor.type == "packed"]
        found |= {(weight.g, bool(weight.sections["order"])) for weight in packed}
    assert {g for g, _ in found} == {1, 4}
    assert {is_ordered for _, is_ordered in found} == {False, True}


def test_every_operator(tmp_path: Path):
    torch.manual_seed(0)
    model, x = Everything().eval(), torch.randn(2, 3, 11, 9)
    engine = compiled(model, x, "float32")
    ops = {node.op for node in engine.facts().nodes}
    assert set(OPERATORS) - ops <= {"quantize", "dequantize", "lookup", *DIMENSIONS}, ops
    check_outputs(engine, x, run_here(amalgamated(engine, tmp_path), x, options=SANITIZED), False)


@pytest.mark.parametrize("kblock", [16, 32])
def test_blocks_of_columns(tmp_path: Path, kblock: int, monkeypatch: pytest.MonkeyPatch):
    def in_kblocks(*given: Any, **options: Any) -> Tensor:
        return pack(*given, **{**options, "kblock": kblock})

    monkeypatch.setattr("sparseinfer.export.file.pack", in_kblocks)
    torch.manual_seed(0)
    model, x = pruned(simple_cnn(), 1, 3, 32, 32)
    engine = compiled(model, x, "float32")
    records = read_records(bytes(engine.file.numpy()))
    blocks = [read_packed(own.data).blocks for own in records.tensors if own.type == "packed"]
    assert sum(count > 1 for count in blocks) >= 2
    check_outputs(engine, x, run_here(amalgamated(engine, tmp_path), x, options=SANITIZED), False)


def test_several_inputs_and_outputs(tmp_path: Path):
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return a.view(6), torch.relu(a + b), a + b

    a, b = torch.randn(2, 3), torch.randn(2, 3)
    engine = compiled(Two().eval(), (a, b), "float32")
    folder = amalgamated(engine, tmp_path)
    # It has no constants.
    assert {path.name for path in folder.iterdir()} == {"main.c", "sparseinfer.c", "sparseinfer.h"}
    found = run_here(folder, a, b, options=SANITIZED)
    expected = torch.cat([a.flatten(), torch.relu(a + b).flatten(), (a + b).flatten()])
    assert np.array_equal(found, expected.numpy())


LACKING = {"embedding", "masked", "attention"}
"""Steps of random networks that plain C has no operators for."""


@pytest.mark.slow
def test_random_networks(tmp_path: Path):
    met: set[str] = set()
    ran = 0
    for seed in range(1000):
        network, inputs = random_network(seed, 4)
        if {name.split()[0] for name, _, _ in network.steps} & LACKING:
            continue
        if not all(x.is_floating_point() for x in inputs):
            continue  # An input that nothing reads.
        engine = compile(network.eval(), inputs, baselines=(), golden=True)
        folder = amalgamated(engine, tmp_path / str(seed))
        found = run_here(folder, *inputs, options=SANITIZED)
        for which, y in enumerate(engine(*inputs)):
            own, found = found[: y.numel()], found[y.numel() :]
            bound = bound_of(engine, which)
            assert np.abs(own - y.numpy().ravel()).max() <= bound, f"seed {seed}:\n{network}"
        assert len(found) == 0
        met |= {node.op for node in engine.facts().nodes}
        ran += 1
        if ran == 30:
            break
    assert ran == 30
    assert len(set(OPERATORS) & met) >= 12, met


def test_two_models_in_one_program_of_cpp(tmp_path: Path):
    cpp = shutil.which("c++")
    if cpp is None:
        pytest.skip("no C++ compiler; it would build a program with exported models")
    outputs = []
    for name in ("one", "two"):
        torch.manual_seed(len(outputs))
        engine = compiled(nn.Linear(9, 4).eval(), torch.ones(1, 9), "int8")
        write_folder(tmp_path / name, files_of(engine, "amalgamation", name))
        outputs.append(engine(torch.ones(1, 9)).flatten())
    (tmp_path / "main.cc").write_text(
        """
#include "one/sparseinfer.h"
#include "two/sparseinfer.h"
#include <cstdio>
static one_context first;
static two_context second;
int main() {
  float x[ONE_X_ELEMENTS], y[ONE_Y_ELEMENTS + TWO_Y_ELEMENTS];
  for (float& v : x) v = 1;
  one_run(&first, x, y);
  two_run(&second, x, y + ONE_Y_ELEMENTS);
  return std::fwrite(y, sizeof y, 1, stdout) != 1;
}
"""
    )
    for name in ("one", "two"):
        for file in ("sparseinfer.c", f"{name}.S"):
            out = f"{name}_{Path(file).suffix[1:]}.o"
            call(compiler(), f"-I{name}", "-c", f"{name}/{file}", "-o", out, cwd=tmp_path)
    objects = sorted(path.name for path in tmp_path.glob("*.o"))
    call(cpp, "-Wall", "-Werror", "main.cc", *objects, "-o", "main", cwd=tmp_path)
    found = np.frombuffer(call(tmp_path / "main", cwd=tmp_path), np.float32)
    assert np.array_equal(found, torch.cat(outputs).numpy())


def test_only_what_a_model_needs_is_in_it(tmp_path: Path):
    torch.manual_seed(0)
    folder = amalgamated(compiled(*mlp(), "int8"), tmp_path)
    source = (folder / "sparseinfer.c").read_text()
    assert "linear_int8(" in source and "quantize(" in source
    assert not re.search(r"conv_|pool|softmax|act_relu|malloc|#include <std[^i]", source)
    assert "#include <math.h>" not in source
    call(
        compiler(), *WARNINGS, "-ffreestanding", "-O2", "-I.", "-c", "sparseinfer.c", "-o", "net.o",
        cwd=folder,
    )  # fmt: skip
    undefined = set(re.findall(r" U (\w+)", call("nm", "net.o", cwd=folder).decode()))
    assert undefined <= {"net_weights", "memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}


@pytest.mark.parametrize("piece", sorted(path.name for path in EMBEDDED.glob("*.h")))
def test_every_piece_is_whole(tmp_path: Path, piece: str):
    (tmp_path / "piece.c").write_text(f'#include "{piece}"\n')
    quiet = ["-Wno-unused-function", f"-I{EMBEDDED}", "-fsyntax-only"]
    call(compiler(), *WARNINGS, *quiet, "piece.c", cwd=tmp_path)


ROUNDED = """
#include <math.h>
#include <stdio.h>
int main(void) {
  uint32_t state = 1, bits[3];
  for (int i = 0; i < 2000000; ++i) {
    float v[3];
    for (int j = 0; j < 3; ++j) {
      state = state * 1664525u + 1013904223u;
      bits[j] = state;
      /* Near one another, so that sums cancel, and of few bits, so that they end halfway. */
      if (i % 2) bits[j] = (bits[j] & 0x83ffffff) | 0x3c000000;
      if (i % 4 == 3) bits[j] &= 0xfffff000;
      memcpy(&v[j], &bits[j], sizeof v[j]);
    }
    if (i % 8 == 7) v[2] = ldexpf(v[2], -24);
    const float own = fused_multiply_add(v[0], v[1], v[2]), true_one = fmaf(v[0], v[1], v[2]);
    if (memcmp(&own, &true_one, sizeof own) != 0 && !(own != own && true_one != true_one)) {
      printf("%a %a %a: %a, not %a", v[0], v[1], v[2], own, true_one);
      return 1;
    }
  }
  for (int i = -1200; i <= 1200; ++i)
    for (int j = -1; j <= 1; ++j) {
      const float v = nextafterf((float)i / 4.0f, (float)i / 4.0f + (float)j);
      if (nearest(v) != (int32_t)nearbyintf(v)) {
        printf("%a: %d", v, (int)nearest(v));
        return 1;
      }
    }
  return 0;
}
"""


@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_sums_of_products_are_rounded_once(tmp_path: Path, level: str):
    text = join_pieces(["fused.h", "bytes.h"])
    (tmp_path / "rounded.c").write_text(text + ROUNDED)
    quiet = [level, "-Wno-unused-function", "-Wno-double-promotion"]
    call(compiler(), *WARNINGS, *quiet, "rounded.c", "-lm", "-o", "rounded", cwd=tmp_path)
    assert call(tmp_path / "rounded", cwd=tmp_path) == b""


def test_fast_math_is_refused(tmp_path: Path):
    (tmp_path / "fused.c").write_text(join_pieces(["fused.h"]))
    with pytest.raises(AssertionError, match="try without it"):
        call(compiler(), "-ffast-math", "-fsyntax-only", "fused.c", cwd=tmp_path)


class Lacking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 8)
        self.first = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.first(x, x, x, need_weights=False)[0]


def test_what_plain_c_lacks_is_told_all_at_once():
    engine = compile(Lacking().eval(), torch.arange(5)[None], baselines=())
    with pytest.raises(NotInC, match="got 2 nodes that it has not; try --format c") as caught:
        files_of(engine, "amalgamation", "net")
    assert [missing.op for missing in caught.value.missing] == ["embedding", "attention"]
    assert caught.value.missing[0].module == "words"


def test_images_that_are_too_large():
    engine = compile(nn.Conv2d(2, 2, 3).eval(), torch.randn(1, 2, 8, 8), baselines=())
    records = read_records(bytes(engine.file.numpy()))
    packed = {
        number: read_packed(tensor.data)
        for number, tensor in enumerate(records.tensors)
        if tensor.type == "packed"
    }
    check_model(records, packed)
    (conv,) = records.nodes
    for place in range(2, 6):
        params = list(conv.params)
        params[place] = 2**30
        padded = replace(conv, params=tuple(params))
        with pytest.raises(NotInC, match="its padded image is larger than"):
            check_model(replace(records, nodes=(padded,)), packed)


def test_the_object_holds_the_file(tmp_path: Path):
    torch.manual_seed(0)
    engine = compiled(*mlp(), "int8")
    files = files_of(engine, "c", "My-Net")
    assert set(files) == {"my_net.h", "my_net.S", "my_net.sinf"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    header = files["my_net.h"].decode()
    assert len(header.splitlines()) <= 40
    (tmp_path / "main.c").write_text(
        """
#include "my_net.h"
#include <stdint.h>
#include <stdio.h>
int main(void) {
  fprintf(stderr, "%zu %d %d %d", (size_t)MY_NET_CONTEXT_BYTES, (int)((uintptr_t)my_net_sinf % 64),
          MY_NET_INPUT0_BYTES, MY_NET_OUTPUT0_BYTES);
  return fwrite(my_net_sinf, MY_NET_SINF_BYTES, 1, stdout) != 1;
}
"""
    )
    call(compiler(), *WARNINGS, "-I.", "main.c", "my_net.S", "-o", "main", cwd=tmp_path)
    told = f"{engine.facts().context_bytes} 0 {4 * 3 * 50} {4 * 3 * 10}"
    out = call("sh", "-c", "./main 2>told", cwd=tmp_path)
    assert out == bytes(engine.file.numpy()) and (tmp_path / "told").read_text() == told
    for option in (
        '-DSPARSEINFER_OPERATORS="linear;quantize"',
        '-DSPARSEINFER_FORMATS="panel"',
        '-DSPARSEINFER_TYPES="float32;int8"',
    ):
        assert option in header


def test_names_cannot_end_a_comment(tmp_path: Path):
    model = nn.Sequential()
    model.add_module("*/ int broken = ; /*\\\n??/", nn.Linear(5, 3))
    engine = compile(model.eval(), torch.randn(1, 5), baselines=(), golden=True)
    x = torch.randn(1, 5)
    check_outputs(engine, x, run_here(amalgamated(engine, tmp_path / "net"), x), False)


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folder(tmp_path / "net", {"a": b"1", "b": b"2"})
    real = Path.write_bytes

    def fails(path: Path, content: bytes) -> int:
        if path.name == "b":
            raise OSError("full")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="full"):
        write_folder(tmp_path / "net", {"a": b"3", "b": b"4"})
    with pytest.raises(OSError, match="full"):
        write_folder(tmp_path / "new", {"a": b"3", "b": b"4"})
    assert (tmp_path / "net" / "a").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


# ---- The command line ----------------------------------------------------------------------------


FACTORIES = """
import torch
from torch import nn


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.ones(2, 6)


def words():
    return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 2)).eval(), torch.ones(2, 3).long()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of factories that no other test has imported, in the working folder."""
    name = f"c_factories_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    return name


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out, captured.err


def test_a_factory_and_a_file_become_the_same_folder(capsys: Any, module: str):
    given = (f"{module}:small", "--baselines", "none")
    assert run(capsys, "export", *given, "-o", "m.sinf")[0] == 0
    code, out, err = run(capsys, "export", *given, "-o", "one/net", "--format", "amalgamation")
    assert (code, err) == (0, "") and "Outputs within" in out and "net.bin" in out
    code, out, _ = run(
        capsys, "export", "m.sinf", "-o", "two/net", "--format", "amalgamation", "--json"
    )
    assert code == 0
    sizes = {path.name: path.stat().st_size for path in Path("two/net").iterdir()}
    assert json.loads(out)["files"] == sizes
    for path in Path("one/net").iterdir():
        assert path.read_bytes() == (Path("two/net") / path.name).read_bytes()
    code, _, err = run(capsys, "export", "m.sinf", "-o", "object", "--format", "c")
    assert (code, err) == (0, "")
    assert Path("object/object.sinf").read_bytes() == Path("m.sinf").read_bytes()
    code, _, err = run(capsys, "export", "m.sinf", "-o", "object", "--format", "c", "--force")
    assert (code, err) == (0, "")


def test_what_is_refused(capsys: Any, module: str):
    assert run(capsys, "export", f"{module}:small", "--baselines", "none", "-o", "m.sinf")[0] == 0
    Path("there").mkdir()
    Path("there/sparseinfer.h").write_text("another's")
    Path("damaged.sinf").write_bytes(Path("m.sinf").read_bytes()[:-1])
    plain = ("--format", "amalgamation")
    for arguments, expected in (
        (("m.sinf", "-o", "new"), "got a model file; try --format c"),
        (("m.sinf", "-o", "new", "--format", "rust"), "expected --format of sinf, c, amalgam"),
        (("m.sinf", "-o", "new", *plain, "--golden"), "no --golden of a model file"),
        (("m.sinf", "-o", "new", *plain, "--weights", "int8"), "no --weights of a model file"),
        (("m.sinf", "-o", "m.sinf", *plain, "--force"), "expected a folder or none, got a file"),
        (("m.sinf", "-o", "there", *plain), "there/sparseinfer.h: expected a name for a new file"),
        (("damaged.sinf", "-o", "new", *plain), "damaged.sinf: "),
        (("nowhere.sinf", "-o", "new", *plain), "nowhere.sinf: "),
    ):
        code, _, err = run(capsys, "export", *arguments)
        assert code == 2 and expected in err and err.count("\n") == 1, err
    assert Path("there/sparseinfer.h").read_text() == "another's"
    assert not Path("new").exists()


def test_a_model_that_plain_c_lacks_writes_nothing(capsys: Any, module: str):
    arguments = (f"{module}:words", "-o", "new", "--format", "amalgamation", "--baselines", "none")
    code, out, err = run(capsys, "export", *arguments)
    assert code == 2 and "got 1 node that it has not; try --format c" in err
    assert out.count("missing: embedding in ") == 1
    assert not Path("new").exists()


def test_the_sources_are_those_of_the_folder(tmp_path: Path):
    torch.manual_seed(0)
    folder = amalgamated(compiled(*mlp(), "float32"), tmp_path)
    assert set(sources(folder)) == {"main.c", "sparseinfer.c", "net.S"}
    assert ".incbin" in (folder / "net.S").read_text()
    weights = read_records(bytes(compiled(*mlp(), "float32").file.numpy()))
    largest = max(len(tensor.data) for tensor in weights.tensors)
    assert (folder / "net.bin").stat().st_size > largest / 2
    assert not re.search(r"0x[0-9a-f]{2}, 0x", (folder / "sparseinfer.c").read_text())
