"""SPARSEINFER_VERBOSE and the loggers: what is told, to whom, and nothing where nobody asked."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
from oracle import sparse_weight
from torch import nn

from sparseinfer import SparseConv2d, convert_to_sparse, pack
from sparseinfer.kernels import verbose
from sparseinfer.ops import run_conv, run_linear
from sparseinfer.ops.run_linear import linear_cpu


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for names in verbose.NAMES.values() for name in names]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


def test_the_package_is_silent_by_itself() -> None:
    handlers = logging.getLogger("sparseinfer").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)


def test_nothing_is_wrapped_where_dispatch_is_not_logged() -> None:
    for operator in (run_linear.linear_cpu, run_linear.linear_cuda, run_conv.conv_cpu):
        assert not hasattr(operator, "__wrapped__")
        assert verbose.logged("linear", on=False)(operator) is operator


def test_dispatch_is_told_once_a_problem(caplog: pytest.LogCaptureFixture) -> None:
    call = verbose.logged("linear", on=True)(linear_cpu)
    packed = pack(torch.eye(8))
    best = next(row["name"] for row in verbose.native.rows() if row["op"] == "linear")
    threads = torch.get_num_threads()
    with caplog.at_level(logging.DEBUG, logger="sparseinfer.dispatch"):
        for _ in range(3):
            assert torch.equal(call(torch.ones(2, 8), packed, None, 8), torch.ones(2, 8))
        assert caplog.messages == [
            f"linear panel: weight 8x8, x 2x8 float32 on cpu, {threads} threads: {best}"
        ]
        call(torch.ones(3, 8), packed, None, 8)
        call(torch.ones(8, 2).t(), packed, None, 8)
        assert len(caplog.messages) == 3
        scalar = next(
            i for i, row in enumerate(verbose.native.rows()) if row["name"] == "panel.linear.scalar"
        )
        call(torch.ones(2, 8), packed, None, 8, row=scalar)
        assert caplog.messages[-1].endswith(": panel.linear.scalar")


def test_grouped_convolutions_say_so(caplog: pytest.LogCaptureFixture) -> None:
    layer = SparseConv2d.from_dense(nn.Conv2d(4, 8, 3, groups=2))
    call = verbose.logged("conv", on=True)(run_conv.conv_cpu)
    with caplog.at_level(logging.DEBUG, logger="sparseinfer.dispatch"):
        call(
            torch.ones(1, 4, 5, 5), layer.packed, None, 8, (3, 3), (1, 1), (0,) * 4, (1, 1), 2,
        )  # fmt: skip
    (message,) = caplog.messages
    assert message.startswith("conv panel: weight 8x2x3x3 in 2 groups, x 1x4x5x5 float32 on cpu")


def test_configure(capsys: pytest.CaptureFixture[str]) -> None:
    assert verbose.configure("") == [] and verbose.configure(" convert, dispatch ") == [
        "convert", "dispatch",
    ]  # fmt: skip
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight.data = sparse_weight((8, 8), 0.5)
    verbose._handler().setStream(sys.stderr)  # type: ignore[attr-defined]
    convert_to_sparse(model)
    assert "sparseinfer.convert: 0: dense (modelled" in capsys.readouterr().err


def test_an_unknown_name_is_a_clear_warning() -> None:
    with pytest.warns(UserWarning, match="to list dispatch or convert, got 'dispach'; try"):
        assert verbose.configure("dispach,convert") == ["convert"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verbose.configure("dispatch")


PROGRAM = """
import torch, sparseinfer
layer = sparseinfer.SparseLinear.from_dense(torch.nn.Linear(8, 4))
for _ in range(2):
    layer(torch.zeros(3, 8))
with torch.no_grad():
    layer(torch.zeros(3, 8))
"""


def test_the_environment_variable_is_read_at_import() -> None:
    environment = {**os.environ, "SPARSEINFER_VERBOSE": "dispatch,nonsense"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout == ""
    lines = [line for line in ended.stderr.splitlines() if line.startswith("sparseinfer.dispatch")]
    assert len(lines) == 1 and "linear panel: weight 4x8, x 3x8 float32 on cpu" in lines[0]
    assert "UserWarning: expected SPARSEINFER_VERBOSE to list" in ended.stderr
