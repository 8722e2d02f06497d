"""Threads: one weight for all, torch's number and runtime, callers at once, forks and exits."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sparseinfer import _C, SparseConv2d, SparseLinear, convert_to_sparse, pack
from sparseinfer.formats.handles import Handle
from sparseinfer.timing.measure import torch_threads

ROOT = Path(__file__).resolve().parent.parent

linear = torch.ops.sparseinfer.linear.default

needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="this system does not list a process's threads"
)


def _pruned(layer: Any) -> Any:
    with torch.no_grad():
        layer.weight[torch.rand_like(layer.weight) < 0.7] = 0.0
    return layer.eval()


def _network() -> tuple[nn.Module, Tensor]:
    """A network whose every layer is sparse and has work for several threads, and its input."""
    dense = nn.Sequential(
        _pruned(nn.Conv2d(8, 24, 3, padding=1)),
        nn.ReLU(),
        _pruned(nn.Conv2d(24, 40, 1)),
        _pruned(nn.Conv2d(40, 16, 3, stride=2)),
        nn.Flatten(2),
        _pruned(nn.Linear(81, 200)),
        nn.GELU(),
    )
    sparse = convert_to_sparse(dense, min_speedup=0)
    kinds = [type(layer) for layer in sparse if type(layer) in (SparseConv2d, SparseLinear)]
    assert kinds == [SparseConv2d] * 3 + [SparseLinear]
    return sparse, torch.randn(3, 8, 20, 20)


def _in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work(0)` ... `work(count - 1)` at once, and raise what one of them raised."""
    ready, errors = threading.Barrier(count), []

    def run(index: int) -> None:
        try:
            ready.wait()
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _python(code: str) -> str:
    """Run a script in a fresh process; it must end by itself, with status 0 and no complaint."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---- one weight, one runtime -------------------------------------------------------------------


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@needs_proc
@torch.inference_mode()
def test_one_copy_of_the_weight_at_any_number_of_threads() -> None:
    layer = SparseLinear.from_dense(_pruned(nn.Linear(2048, 2048)))
    x = torch.randn(1, 2048)
    with torch_threads(1):
        expected, handle, before = layer(x), layer.handle, _resident_bytes()
    assert handle.memory.data_ptr() == layer.packed.data_ptr()
    for threads in (2, 4, 8):
        with torch_threads(threads):
            assert torch.equal(layer(x), expected)
        assert layer.handle is handle
    # What the threads themselves need is small beside the weight's 6 MB.
    assert layer.packed.numel() > 6e6
    assert _resident_bytes() - before < layer.packed.numel() / 2


_COUNT_THREADS = """
import json, os, threading, time
import torch
from sparseinfer import SparseConv2d, SparseLinear, _C

def tasks():
    return set(os.listdir("/proc/self/task"))

def pruned(layer):
    with torch.no_grad():
        layer.weight[torch.rand_like(layer.weight) < 0.5] = 0.0
    return layer

torch.set_num_threads(1)
before = len(tasks())
# Intel's and LLVM's runtimes keep the threads that they no longer use.
fewer = (2, 3) if "libgomp" in _C.threads_backend() else ()
linear = SparseLinear.from_dense(pruned(torch.nn.Linear(256, 256)))
conv = SparseConv2d.from_dense(pruned(torch.nn.Conv2d(16, 32, 3, padding=1)))
x, image, big = torch.randn(128, 256), torch.randn(1, 16, 30, 30), torch.randn(1000, 1000)
one_token = torch.randn(1, 256)
found = {}
with torch.inference_mode():
    for layer, data in ((linear, x), (conv, image)):
        used = found[type(layer).__name__] = []
        for threads in (1, 2, 4, *fewer) if layer is linear else (5, *fewer):
            torch.set_num_threads(threads)
            layer(data)
            # A thread that the runtime dismissed takes a moment to go.
            for _ in range(1000):
                if len(tasks()) - before == threads - 1:
                    break
                time.sleep(0.01)
            used.append([threads, len(tasks()) - before + 1])

    torch.set_num_threads(4)
    torch.relu(big)
    before, found["came or went"] = tasks(), 0
    for _ in range(30):
        # The last works on one thread, the one before on fewer than four.
        for layer, data in ((linear, x), (conv, image), (linear, x[:12]), (linear, one_token)):
            layer(data)
            found["came or went"] += len(tasks() ^ before)
            torch.relu(big)
            found["came or went"] += len(tasks() ^ before)

    found["after callers"] = []
    for _ in range(3):
        callers = [threading.Thread(target=lambda: [linear(x) for _ in range(5)]) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        for _ in range(1000):
            if tasks() == before:
                break
            time.sleep(0.01)
        found["after callers"].append(len(tasks() ^ before))
print(json.dumps(found))
"""


@needs_proc
def test_calls_use_torchs_number_of_threads_and_start_none_beside_torchs() -> None:
    found = json.loads(_python(_COUNT_THREADS))
    asked_and_used = found.pop("SparseLinear") + found.pop("SparseConv2d")
    assert {asked for asked, _ in asked_and_used} >= {1, 2, 4, 5}
    assert all(asked == used for asked, used in asked_and_used)
    assert found == {"came or went": 0, "after callers": [0, 0, 0]}


_RUNTIMES = """
import {first}
import {second}
import threadpoolctl
import torch
from sparseinfer import SparseLinear, _C
torch.set_num_threads(2)
layer = SparseLinear.from_dense(torch.nn.Linear(512, 512))
torch.relu(torch.randn(1000, 1000))
layer(torch.randn(64, 512))
print(_C.threads_backend())
for pool in threadpoolctl.threadpool_info():
    if pool["user_api"] == "openmp":
        print(pool["filepath"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("sparseinfer", "torch"), ("torch", "sparseinfer")])
def test_no_openmp_runtime_but_torchs(first: str, second: str) -> None:
    backend, *runtimes = _python(_RUNTIMES.format(first=first, second=second)).splitlines()
    assert len(runtimes) == 1
    assert backend == f"gomp ({Path(runtimes[0]).name} of the host)"


# ---- callers at once ---------------------------------------------------------------------------


def _first_use_at_once(layer: Any, x: Tensor, shift: int) -> None:
    """Give the layer a weight that no handle knows, `shift` bytes off alignment, and race to it."""
    with torch_threads(1), torch.no_grad():
        expected = layer(x)
    memory = torch.empty(layer.packed.numel() + shift, dtype=torch.uint8)
    layer.packed = memory[shift:].copy_(layer.packed)
    results: list[Tensor] = [x] * 6

    def call(index: int) -> None:
        with torch.no_grad():
            results[index] = layer(x)

    _in_threads(6, call)
    assert all(torch.equal(y, expected) for y in results)
    # Threads that lost the race kept nothing.
    gc.collect()
    live = [
        each for each in gc.get_objects() if type(each) is Handle and each.describes(layer.packed)
    ]
    assert len(live) == 1 and live[0] is layer.handle
    assert (live[0].memory.data_ptr() == layer.packed.data_ptr()) == (shift == 0)


@pytest.mark.slow
def test_first_use_by_many_threads_at_once_gives_the_same_bits_and_one_handle() -> None:
    dense, image = _pruned(nn.Linear(64, 96)), _pruned(nn.Conv2d(16, 24, 3, padding=1))
    for repeat in range(4):
        shift = repeat % 2 * 8
        _first_use_at_once(SparseLinear.from_dense(dense), torch.randn(40, 64), shift)
        _first_use_at_once(SparseConv2d.from_dense(image), torch.randn(2, 16, 12, 12), shift)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_network_called_by_many_threads_at_once_gives_the_same_bits(threads: int) -> None:
    network, x = _network()
    inputs = [x[:1], x, torch.randn(2, 8, 20, 20)]
    with torch.inference_mode():
        with torch_threads(1):
            expected = [network(each) for each in inputs]

        def call(index: int) -> None:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                for repeat in range(40):
                    which = (index + repeat) % len(inputs)
                    assert torch.equal(network(inputs[which]), expected[which])

        with torch_threads(threads):
            _in_threads(4, call)


# ---- where calls come from ---------------------------------------------------------------------


def test_calls_from_inside_an_openmp_region() -> None:
    network, x = _network()
    with torch.inference_mode():
        expected = network(x)
    # Through torch's library the name means torch's runtime.
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    results: list[bool] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def region(_: int | None) -> None:
        with torch.inference_mode():
            results.append(torch.equal(network(x), expected))

    for _ in range(5):
        library.GOMP_parallel(region, None, 4, 0)
    assert results == [True] * 20


_FORKED_CALLS = """
def one(x, packed):
    # type: (Tensor, Tensor) -> Tensor
    return torch.ops.sparseinfer.linear(x, packed, None, 96, "none", 0)

def two(x, packed):
    # type: (Tensor, Tensor) -> List[Tensor]
    a, b = torch.jit.fork(one, x, packed), torch.jit.fork(one, x, packed)
    return [torch.jit.wait(a), torch.jit.wait(b)]
"""


def test_calls_from_torchs_inter_operator_threads() -> None:
    packed, x = pack(_pruned(nn.Linear(64, 96)).weight), torch.randn(200, 64)
    with torch.inference_mode():
        expected = linear(x, packed, None, 96, "none", 1)
        calls = torch.jit.CompilationUnit(_FORKED_CALLS)
        for _ in range(10):
            assert all(torch.equal(y, expected) for y in calls.two(x, packed))


class _Outputs(Dataset[Tensor]):
    """What the worker computes: the layer at torch's number of threads, and at three."""

    def __init__(self, layer: SparseLinear, x: Tensor) -> None:
        self.layer = layer
        self.x = x

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        packed, bias = self.layer.packed, self.layer.bias
        with torch.inference_mode():
            y = self.layer(self.x), linear(self.x, packed, bias, 96, "none", 3)
        return torch.stack(y).clone()


@pytest.mark.parametrize("threads", [1, 2])
def test_calls_in_data_loader_workers(threads: int) -> None:
    layer, x = SparseLinear.from_dense(_pruned(nn.Linear(64, 96))), torch.randn(200, 64)
    with torch_threads(threads):
        torch.relu(torch.randn(1000, 1000))  # the parent has used OpenMP, where it has threads
        with torch.inference_mode():
            expected = layer(x)
        loader = DataLoader(
            _Outputs(layer, x), num_workers=2, multiprocessing_context="fork", timeout=60
        )
        outputs = list(loader)
    assert len(outputs) == 6
    for y in outputs:
        assert torch.equal(y[0, 0], expected) and torch.equal(y[0, 1], expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_keeps_its_number_of_threads() -> None:
    layer, x = SparseLinear.from_dense(_pruned(nn.Linear(64, 96))), torch.randn(200, 64)
    with torch_threads(2), torch.inference_mode():
        expected = layer(x)
        child = os.fork()
        if child == 0:
            same = all(torch.equal(layer(x), expected) for _ in range(20))
            os._exit(0 if same and _C.threads_backend() == "pool" else 1)
        for _ in range(6000):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.01)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the forked child hangs")
    assert status == 0


# ---- exits -------------------------------------------------------------------------------------

_EXIT = """
import atexit, os, threading, time
import torch
from sparseinfer import SparseLinear, _C, pack

torch.set_num_threads(2)
packed, x = pack(torch.randn(512, 512)), torch.randn(64, 512)
weights, calls = _C.Weights(packed.data_ptr(), packed.numel()), []

def work():
    y = torch.empty(64, 512)
    arguments = (x.data_ptr(), y.data_ptr(), 0, 64, 512, 512, False, "none", -1, 2)
    while True:
        weights.linear(*arguments)
        calls.append(1)

layer = SparseLinear.from_dense(torch.nn.Linear(512, 512))
atexit.register(lambda: layer(x))
if {forked} and os.fork():
    status = os.wait()[1]
    layer(x)
    os._exit(status != 0)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
while len(calls) < 30:
    time.sleep(0.001)
"""


@pytest.mark.slow
@pytest.mark.parametrize("forked", [False, True])
def test_the_process_exits_cleanly_while_daemon_threads_are_in_calls(forked: bool) -> None:
    _python(_EXIT.format(forked=forked))
