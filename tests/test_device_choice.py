"""What a conversion on a GPU decides: formats by pattern, timed on rotated copies, dense otherwise.

Tensors on the CPU stand for a GPU's, native rows for its kernels, and a table of seconds for its
clock: the whole flow runs as it does there, but for the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import nn

from sparseinfer import SparseLinear, convert_to_sparse, formats, report
from sparseinfer.convert.candidates import formats_for, pack_params
from sparseinfer.convert.conversion import Options, convert
from sparseinfer.convert.layer_report import Candidate
from sparseinfer.convert.platform import Platform
from sparseinfer.convert.reasons import memory_choice
from sparseinfer.convert.scan import scan
from sparseinfer.kernels import dispatch
from sparseinfer.timing import device_time, tuning
from sparseinfer.timing.clock import Clock
from sparseinfer.timing.device_time import (
    MOST_COPIES,
    UNKNOWN_CACHE_BYTES,
    EventTimer,
    GraphTimer,
    cache_bytes,
    capture,
    copies_for,
)
from sparseinfer.timing.rounds import Rotation

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no CUDA device; it would time rotated layers by events and by a CUDA graph",
)


class Seconds:
    """A timer that tells a side's seconds by its name, and notes the rotations it was given."""

    name = "table"

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.seen: list[Rotation] = []

    def __call__(self, call: Any, repeats: int) -> float:
        assert isinstance(call, Rotation)
        if call not in self.seen:
            self.seen.append(call)
        call()
        return self.seconds[call.name]


class Quiet(Clock):
    """A machine that nobody else uses."""

    def thread(self) -> float:
        return self.wall()

    def preemptions(self) -> int:
        return 0

    def load(self) -> float | None:
        return None


@dataclass(frozen=True)
class Gpu(Platform):
    """The CPU that passes for a GPU, whose clock shows the seconds of a table."""

    clock: Clock = field(default_factory=Quiet)
    table: Seconds = field(default_factory=Seconds)
    refusal: str = ""
    searched: list[Any] = field(default_factory=list)
    captured: list[str] = field(default_factory=list)

    def kernels_of(self, device: torch.device) -> str:
        return "cuda"

    def timer(self, device: torch.device, baseline: str) -> Seconds:
        return self.table

    def cache_bytes(self, device: torch.device) -> int:
        return 40_000

    def search_algorithm(self, packed: torch.Tensor, *given: Any) -> None:
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.searched.append(given)

    def capture(self, call: Any, device: torch.device) -> Callable[..., object]:
        kinds = [type(module).__name__ for module in call.func.modules()]
        self.captured.append("SparseLinear" if "SparseLinear" in kinds else "Linear")
        return lambda *args: call()


def gpu(**seconds: float) -> Gpu:
    return Gpu(table=Seconds(**seconds))


def _linear(density: float = 0.5, nm: tuple[int, int] | None = None, size: int = 64) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(size, size)
    layer.weight.data = sparse_weight((size, size), density, nm=nm)
    return layer


def _blocks(size: int = 64, block: int = 32) -> torch.Tensor:
    torch.manual_seed(0)
    kept = torch.eye(size // block).repeat_interleave(block, 0).repeat_interleave(block, 1)
    return torch.randn(size, size) * kept


def _converted(
    layer: nn.Module, platform: Platform, n: int = 8, **options: Any
) -> tuple[nn.Module, Any]:
    given = {"example_inputs": torch.randn(n, 64), "verify": False, "cache": False} | options
    model = convert(nn.Sequential(layer), Options(**given), platform)
    return model[0], report(model).layers[0]


def _named(*layers: nn.Module) -> list[Any]:
    return scan(nn.Sequential(*layers))


# ---- which formats -------------------------------------------------------------------------------


def test_formats_follow_the_pattern() -> None:
    block = nn.Linear(64, 64)
    block.weight.data = _blocks()
    small = nn.Linear(64, 64)
    small.weight.data = _blocks(block=8)
    layers = _named(
        _linear(1.0, nm=(2, 4)), block, _linear(0.1), _linear(0.6), _linear(1.0, nm=(4, 8)), small
    )
    tried = [formats_for(layer, "cuda") for layer in layers]
    assert [names for names, _ in tried] == [
        ("nm",), ("bsr",), ("csr",), (), (), ("csr",),
    ]  # fmt: skip
    assert tried[3][1].startswith("its zeros are unstructured, 41% of the weight: a GPU's kernels")
    assert tried[4][1].startswith("its zeros are 4:8")
    assert all((not why) == bool(names) for names, why in tried)
    assert all(formats_for(layer, "cpu") == (("panel", "csr"), "") for layer in layers)


def test_a_convolution_of_2_4_stays_dense_with_its_reason() -> None:
    conv = nn.Conv2d(64, 64, 1)
    conv.weight.data = sparse_weight((64, 64, 1, 1), 1.0, nm=(2, 4))
    plain = nn.Conv2d(64, 64, 1)
    plain.weight.data = sparse_weight((64, 64, 1, 1), 0.2)
    blocked = nn.Conv2d(64, 64, 1)
    blocked.weight.data = _blocks()[:, :, None, None]
    found = [formats_for(layer, "cuda") for layer in _named(conv, plain, blocked)]
    assert found[0][0] == () and "a 2:4 convolution stays dense on a GPU" in found[0][1]
    assert found[1][0] == () and "skip whole blocks of 16x16 and more" in found[1][1]
    assert found[2] == (("bsr",), "")
    _, kept = _converted(conv, gpu(dense=1.0), example_inputs=torch.randn(1, 64, 4, 4), verify=True)
    assert kept.format == "dense" and "2:4 convolution stays dense" in kept.reason
    assert kept.candidates == []


# ---- the choice ----------------------------------------------------------------------------------


def test_the_faster_format_is_taken() -> None:
    weight = _linear(1.0, nm=(1, 4))
    sparse, found = _converted(weight, gpu(dense=2.0, nm=1.0, csr=0.5))
    assert isinstance(sparse, SparseLinear) and sparse.format == "csr"
    assert [tried.format for tried in found.candidates] == ["nm", "csr"]
    assert (found.speedup, found.low, found.timing) == (4.0, 4.0, "measured")
    assert found.candidates[0].speedup == 2.0
    assert _converted(weight, gpu(dense=2.0, nm=0.25, csr=0.5))[0].format == "nm"


def test_dense_stays_where_nothing_wins_and_says_what_memory_it_costs() -> None:
    slower = gpu(dense=1.0, csr=1.5)
    layer, found = _converted(_linear(0.1), slower, n=256)
    assert type(layer) is nn.Linear and found.format == "dense"
    assert found.reason.startswith("measured 0.67x (95% sure of 0.67x), less than the 1.05x asked")
    assert "at N = 256 dense tensor cores are hard to beat" in found.reason
    assert "of the memory: formats=['csr'] with min_speedup=0 converts it for that" in found.reason
    few = _converted(_linear(0.1), slower, n=8)[1]
    assert "tensor cores" not in few.reason and "of the memory" in few.reason


@pytest.mark.parametrize(
    ("format", "density", "tokens", "share"),
    # csr in bfloat16: 8 and 4 bytes an entry against 2 a weight. nm: 6/8, 1/16 and 9/16 of dense.
    [("csr", 0.2, 1, None), ("csr", 0.1, 1, 0.6), ("nm", 1.0, 16, 0.8125), ("nm", 1.0, 512, None)],
)
def test_memory_counts_what_the_kernels_keep_beside_the_buffer(
    format: str, density: float, tokens: int, share: float | None
) -> None:
    dense = _linear(density, nm=(2, 4) if format == "nm" else None, size=512).bfloat16()
    packed = formats.pack(dense.weight.detach(), format).numel()
    text = memory_choice(_named(dense)[0], Candidate(format, packed_bytes=packed), [tokens])
    assert text == "" if share is None else f"it would take {share:.0%} of the memory" in text


def test_every_device_has_a_timer() -> None:
    """The layers and the model lie on the meta device and the CPU, which stand for two GPUs."""
    asked: list[tuple[torch.device, str]] = []

    class Asked(Gpu):
        def timer(self, device: torch.device, baseline: str) -> Seconds:
            asked.append((device, baseline))
            return self.table

    model = nn.Sequential(_linear(0.1), nn.Linear(64, 64, device="meta"), _linear(0.1))
    convert(model, Options(), Asked())
    assert set(asked) == {(torch.device("cpu"), "eager"), (torch.device("meta"), "eager")}


def test_every_device_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, cpu = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    tuning.Tuner(1, first, 1.05, others={second, cpu}).synchronize()
    assert waited == [first, second]


def test_memory_is_a_choice() -> None:
    slower = gpu(dense=1.0, csr=1.5)
    layer, _ = _converted(_linear(0.1), slower, n=256, min_speedup=0, formats=["csr"])
    assert isinstance(layer, SparseLinear) and layer.format == "csr"
    unstructured, _ = _converted(_linear(0.5), slower, n=256, min_speedup=0, formats=["csr"])
    assert isinstance(unstructured, SparseLinear)


def test_a_format_that_cannot_be_packed_says_so() -> None:
    layer, found = _converted(_linear(0.5), gpu(dense=1.0, csr=0.5), formats=["nm"])
    assert type(layer) is nn.Linear and found.reason.startswith("nm: ")


def test_without_example_inputs_nothing_is_timed() -> None:
    faster = gpu(dense=1.0, nm=0.5)
    _, found = _converted(_linear(1.0, nm=(2, 4)), faster, example_inputs=None)
    assert "no cost model" in found.reason and not faster.table.seen


@pytest.mark.parametrize(
    ("weight", "block"),
    [
        (_blocks(256, 128), 128),
        (_blocks(128, 64), 64),
        (_blocks(64, 32), 32),
        (_blocks(64, 16), 16),
        (_blocks(64, 8), 16),
        (_blocks(64, 16)[:50, :40], 16),
    ],
)
def test_blocks_follow_the_pattern(weight: torch.Tensor, block: int) -> None:
    layer = nn.Linear(*reversed(weight.shape))
    layer.weight.data = weight.contiguous()
    (found,) = _named(layer)
    assert pack_params(found, "bsr") == {"block": block}
    sparse = convert_to_sparse(nn.Sequential(layer), formats="bsr", min_speedup=0)[0]
    assert isinstance(sparse, SparseLinear)
    assert formats.info(sparse.packed)["params"]["block"] == block


@pytest.mark.filterwarnings("ignore:Sparse")
def test_blocks_of_a_bsr_tensor_are_its_own() -> None:
    layer = nn.Linear(64, 64)
    layer.weight = nn.Parameter(_blocks(block=32).to_sparse_bsr(16), requires_grad=False)
    (found,) = _named(layer)
    assert pack_params(found, "bsr") == {"block": 16}
    unstructured = _named(_linear(0.5))[0]
    assert pack_params(unstructured, "bsr") == {}, "the packer's own choice"


# ---- what a row finds out before its first call --------------------------------------------------


def test_rows_search_for_every_n_that_was_seen() -> None:
    platform = gpu(dense=2.0, nm=1.0)
    examples = [torch.randn(2, 300, 64), torch.randn(1, 64), torch.randn(2, 300, 64)]
    _converted(_linear(1.0, nm=(2, 4)), platform, example_inputs=examples)
    assert platform.searched == [
        ("linear", torch.float32, 1, True), ("linear", torch.float32, 600, True),
    ]  # fmt: skip


def test_what_a_row_refuses_when_it_searches_is_the_reason() -> None:
    refuses = Gpu(table=Seconds(dense=2.0, nm=1.0), refusal="cuSPARSELt refuses\nmore")
    layer, found = _converted(_linear(1.0, nm=(2, 4)), refuses)
    assert type(layer) is nn.Linear and found.reason == "nm: cuSPARSELt refuses"


def test_rows_do_not_search_on_a_cpu() -> None:
    class Cpu(Gpu):
        def kernels_of(self, device: torch.device) -> str:
            return device.type

        def timer(self, device: torch.device, baseline: str) -> Any:
            return None

    cpu = Cpu()
    layer, _ = _converted(_linear(1.0, nm=(2, 4)), cpu, n=300, formats="nm", min_speedup=0)
    assert isinstance(layer, SparseLinear) and not cpu.searched


def test_the_machine_as_it_is_has_the_row_of_the_call_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(dispatch, "search_algorithm", lambda *given: seen.append(given[1:]))
    Platform().search_algorithm(torch.zeros(1), "linear", torch.float16, 3, True)
    assert seen == [("linear", torch.float16, 3, True)]


# ---- how it is timed -----------------------------------------------------------------------------


def test_copies_exceed_the_cache_on_both_sides() -> None:
    platform = gpu(dense=2.0, csr=1.0)
    sparse, _ = _converted(_linear(0.1), platform)
    sides = {turns.name: turns for turns in platform.table.seen}
    dense_bytes = 4 * (64 * 64 + 64)
    assert len(sides["dense"].calls) == 2 * 40_000 // dense_bytes + 1
    assert len(sides["csr"].calls) * (sparse.packed.numel() + 4 * 64) > 2 * 40_000
    for turns in sides.values():
        modules = [call.func for call in turns.calls]  # type: ignore[attr-defined]
        tensors = [module.packed if turns.name == "csr" else module.weight for module in modules]
        assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
        outputs = [call() for call in turns.calls]
        assert all(torch.equal(outputs[0], other) for other in outputs)


def test_sizes_of_caches_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    properties = SimpleNamespace(L2_cache_size=50 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert cache_bytes(cuda) == 50 << 20
    del properties.L2_cache_size
    assert cache_bytes(cuda) == UNKNOWN_CACHE_BYTES
    for weight in (1 << 20, 32 << 20, 99 << 20, 100 << 20):
        assert copies_for(weight, 50 << 20) * weight > 100 << 20
        assert (copies_for(weight, 50 << 20) - 1) * weight <= 100 << 20
    assert copies_for(1000, 50 << 20) == MOST_COPIES
    assert copies_for(0, 50 << 20) == MOST_COPIES


def test_timings_are_kept_for_the_device_and_the_clock(tmp_path: Path) -> None:
    first, again = gpu(dense=2.0, nm=1.0), gpu(dense=2.0, nm=9.0)
    assert _converted(_linear(1.0, nm=(2, 4)), first, cache=tmp_path)[1].speedup == 2.0
    layer, found = _converted(_linear(1.0, nm=(2, 4)), again, cache=tmp_path)
    assert found.speedup == 2.0 and layer.format == "nm"
    assert first.table.seen and not again.table.seen
    (entry,) = map(json.loads, (path.read_text() for path in tmp_path.iterdir()))
    assert entry["problem"]["timed"] == "table"
    again.table.name = "graph"
    _, found = _converted(_linear(1.0, nm=(2, 4)), again, cache=tmp_path)
    assert found.format == "dense" and again.table.seen


def test_the_machine_of_a_gpu_names_it_and_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    tuning.describe_machine.cache_clear()
    found = tuning.describe_machine("cuda:1")
    tuning.describe_machine.cache_clear()
    assert (found["gpu"], found["capability"]) == ("GPU of cuda:1", [9, 0])
    assert len(found["triton_kernels"]) == 16
    assert "gpu" not in tuning.describe_machine("cpu")


def test_a_baseline_chooses_the_clock() -> None:
    cuda, platform = torch.device("cuda"), Platform()
    assert platform.timer(torch.device("cpu"), "eager") is None
    assert type(platform.timer(cuda, "eager")) is EventTimer
    assert type(platform.timer(cuda, "cuda_graph")) is GraphTimer
    assert platform.kernels_of(torch.device("cuda:3")) == "cuda"
    with pytest.raises(ValueError, match="expected a model on CUDA for baseline='cuda_graph'"):
        convert_to_sparse(nn.Linear(4, 4), baseline="cuda_graph")


def test_a_whole_model_is_compared_as_graphs() -> None:
    platform = gpu(dense=2.0, nm=1.0)
    options = Options(
        torch.randn(2, 64), baseline="cuda_graph", min_speedup=0, cache=False, budget_s=2.0
    )
    model = convert(nn.Sequential(_linear(1.0, nm=(2, 4))), options, platform)
    assert platform.captured == ["Linear", "SparseLinear"], "each side is captured once"
    assert report(model).whole.baseline == "cuda_graph"


def test_a_graph_timer_replays_a_rotation_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[int] = []

    def captured(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
        call()
        return lambda: replays.append(1)

    monkeypatch.setattr(device_time, "capture", captured)
    monkeypatch.setattr(
        EventTimer, "__call__", lambda self, call, repeats: [call() for _ in range(repeats)] and 6.0
    )
    timer = GraphTimer(torch.device("cpu"))
    made: list[int] = []
    turns = Rotation("dense", [lambda: made.append(0), lambda: made.append(1)])
    assert timer(turns, 3) == timer(turns, 1) == 3.0
    assert made == [0, 1] and len(replays) == 4
    assert timer(lambda: made.append(2), 1) == 6.0


@needs_gpu
def test_timers_on_a_gpu() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.randn(64, 1024, device=device)
    weights = [torch.randn(1024, 1024, device=device) for _ in range(4)]
    turns = Rotation("dense", [lambda w=w: x @ w for w in weights])  # type: ignore[misc]
    for timer in (EventTimer(device), GraphTimer(device)):
        assert 0 < timer(turns, 8) < 1
    y = torch.zeros(4, device=device)
    replay = capture(lambda: y.add_(1), device)
    before = y[0].item()
    replay()
    assert y[0].item() == before + 1
