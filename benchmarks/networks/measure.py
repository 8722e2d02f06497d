"""One network through every engine: written, prepared, checked against float64, timed in turns."""

from __future__ import annotations

import copy
import importlib.util
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.networks.catalogue import OURS, Entrant
from benchmarks.networks.definitions import Network, build, inputs_of
from benchmarks.networks.results import NetworkNotRun, NetworkRow
from benchmarks.peers.catalogue import Peer
from benchmarks.peers.environments import python_of
from benchmarks.peers.process import PeerError, own_python
from benchmarks.peers.turns import Asker, Samples, TurnPlan, take_turns
from benchmarks.peers.worker import wait_until_quiet
from sparseinfer.timing.rounds import Quartiles, Rounds

LEAST_DB = {"float32": 80.0, "bfloat16": 10.0, "int8": 3.0}
"""Of the output beside its difference from float64: an engine below it computes something else."""

CALIBRATION_BATCHES = 4


def command_of(entrant: Entrant, threads: int, cache: Path) -> list[str]:
    """The command that starts an engine's worker: in its environment, or in ours if it is there.

    Raises:
        PeerError: it is installed in neither.
    """
    peer = entrant.peer
    try:
        python = python_of(peer, cache)
    except PeerError:
        if importlib.util.find_spec(entrant.package) is None:
            raise
        python = own_python()
    return [str(python), "-m", "benchmarks.networks.worker", peer.module, peer.engine, str(threads)]


def write_network(network: Network, sparsity: float, batch: int, folder: Path, int8: bool) -> None:
    """Write a network for every engine: weights, ONNX files, an input, and the float64 output.

    What torch or ONNX Runtime cannot write is not there; engines say so.
    """
    model, x = build(network, sparsity), inputs_of(network, batch)
    torch.save(model.state_dict(), folder / "state.pt")
    np.save(folder / "x.npy", x.numpy())
    with torch.no_grad():
        wide = x.double() if x.is_floating_point() else x
        np.save(folder / "exact.npy", copy.deepcopy(model).double()(wide).numpy())
    path = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, dynamo=False, input_names=["x"], output_names=["y"])
    if int8 and importlib.util.find_spec("onnxruntime") is not None:
        _write_int8(network, model, batch, path, folder / "model.int8.onnx")


def _write_int8(network: Network, model: nn.Module, batch: int, path: Path, out: Path) -> None:
    """Quantise statically: a scale a channel of weights, uint8 results."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Batches other than the one that is timed."""

        left = list(range(CALIBRATION_BATCHES))  # noqa: RUF012

        def get_next(self) -> dict[str, Any] | None:
            """One more."""
            if not self.left:
                return None
            return {"x": inputs_of(network, batch, 100 + self.left.pop()).numpy()}

    prepared = path.with_name("model.prepared.onnx")
    quantization.shape_inference.quant_pre_process(str(path), str(prepared))
    quantization.quantize_static(
        str(prepared), str(out), Reader(), per_channel=True,
        quant_format=quantization.QuantFormat.QDQ, weight_type=quantization.QuantType.QInt8,
        activation_type=quantization.QuantType.QUInt8,
    )  # fmt: skip


def compared(y: Any, exact: Any) -> dict[str, float]:
    """How far an output is from the float64 one.

    Raises:
        PeerError: the shape differs, or an element is no number.
    """
    if y.shape != exact.shape or not np.isfinite(y).all():
        raise PeerError(f"expected finite outputs of {exact.shape}, got {y.shape}, or no numbers")
    difference = y.astype(np.float64) - exact
    power = float((difference**2).sum())
    return {
        "error": float(np.abs(difference).max() / np.abs(exact).max()),
        "sqnr_db": 10 * math.log10(float((exact**2).sum()) / power) if power else 999.0,
        "top1": float((y.argmax(-1) == exact.argmax(-1)).mean()),
    }


def _prepared(
    asker: Asker, entrant: Entrant, network: Network, threads: int, folder: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    result = folder / f"y-{entrant.name}.npy"
    reply = asker.ask(do="prepare", folder=str(folder), network=network.name, result=str(result))
    if reply["threads"] != threads:
        raise PeerError(f"expected {threads} threads, got {reply['threads']}")
    exact = np.load(folder / "exact.npy", allow_pickle=False)
    found = compared(np.load(result, allow_pickle=False), exact)
    if found["sqnr_db"] < LEAST_DB[entrant.dtype]:
        raise PeerError(
            f"expected {entrant.dtype} outputs with at least {LEAST_DB[entrant.dtype]:g} dB beside "
            f"float64, got {found['sqnr_db']:.1f}"
        )
    return reply, found


def measure(
    network: Network, sparsity: float, batch: int, threads: int, entrants: Sequence[Entrant],
    worker_of: Callable[[Peer], Asker], plan: TurnPlan, folder: Path,
) -> tuple[list[NetworkRow], list[NetworkNotRun]]:  # fmt: skip
    """Measure the engines on a network that `write_network` wrote to `folder`."""
    ready: dict[str, Asker] = {}
    errors: dict[str, dict[str, float]] = {}
    layout, reasons = {}, {}
    for entrant in entrants:
        try:
            asker = worker_of(entrant.peer)
            reply, errors[entrant.name] = _prepared(asker, entrant, network, threads, folder)
        except PeerError as error:
            reasons[entrant.name] = str(error)
            continue
        ready[entrant.name] = asker
        layout[entrant.name] = plan.turns_of(reply["seconds"])
    wait_until_quiet()
    found, dropped = take_turns(ready, layout, threads)
    reasons |= dropped
    where = (network.name, batch, sparsity, threads)
    rows = _rows(where, [own for own in entrants if own.name in found], found, errors)
    return rows, [NetworkNotRun(*where, name, reason) for name, reason in reasons.items()]


def _rows(
    where: tuple[str, int, float, int], entrants: Sequence[Entrant], found: dict[str, Samples],
    errors: dict[str, dict[str, Any]],
) -> list[NetworkRow]:  # fmt: skip
    rounds = Rounds({name: samples.medians for name, samples in found.items()})
    rows = []
    for entrant in entrants:
        name, samples = entrant.name, found[entrant.name]
        ours = OURS[entrant.dtype]
        dense = [
            own.name for own in entrants if own.dtype == entrant.dtype and own.peer.role == "dense"
        ]
        rows.append(NetworkRow(
            *where, engine=name, role=entrant.peer.role, dtype=entrant.dtype,
            seconds=Quartiles.of(samples.medians), minimum=samples.minimum,
            rounds=len(samples.medians), cores=statistics.median(samples.cores),
            quiet=samples.quiet, **errors[name],
            ours_faster=rounds.speedup(ours, over=name) if ours in found else None,
            is_best=name == min(dense, key=lambda own: found[own].minimum, default=""),
        ))  # fmt: skip
    return rows
