"""The benchmark tools: cases, result files, summary, tables and plot, without measuring time."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import cases, machine, plot, run, table, targets
from benchmarks.cases import ConvCase, LinearCase, Pattern
from benchmarks.layer_data import LayerData, WrongResultError, make_weight
from benchmarks.results import (
    Failure,
    Results,
    Row,
    geometric_mean,
)
from sparseinfer.kernels import registry
from sparseinfer.timing.rounds import Quartiles, Timing

# ---- cases and problems


def test_convolution_cases_have_the_sizes_pytorch_computes() -> None:
    for case in cases.CONV:
        conv = torch.nn.Conv2d(
            case.c, case.m, case.kernel, case.stride, case.padding, device="meta"
        )
        shape = conv(torch.empty(1, case.c, case.size, case.size, device="meta")).shape
        assert shape == (1, case.m, case.out_size, case.out_size)
        assert conv.weight.shape == case.weight_shape


def test_names_of_cases_differ() -> None:
    names = [case.name for case in cases.KERNELS]
    assert len(set(names)) == len(names)


def test_quick_cases_are_cases() -> None:
    assert {*cases.LINEAR, *cases.CONV, *cases.LINEARITY} >= cases.QUICK
    assert set(cases.QUICK_SPARSITIES) <= set(cases.SPARSITIES)


@pytest.mark.parametrize("sparsity", cases.SPARSITIES)
def test_random_weights_have_exactly_the_sparsity(sparsity: float) -> None:
    weight = make_weight((48, 30), Pattern(sparsity))
    assert int((weight == 0).sum()) == round(sparsity * 48 * 30)


def test_n_of_m_weights_keep_n_in_every_group() -> None:
    weight = make_weight((16, 4, 3, 3), Pattern.n_m(1, 4))
    assert torch.equal((weight != 0).sum(1), torch.ones(16, 3, 3, dtype=torch.int64))
    weight = make_weight((16, 8), Pattern.n_m(1, 4))
    assert torch.equal((weight.view(-1, 4) != 0).sum(1), torch.ones(32, dtype=torch.int64))


@pytest.mark.parametrize("case", [LinearCase(8, 16, 5), ConvCase(4, 8, 6, 3, stride=2)])
def test_verification_accepts_rounding_and_nothing_else(case: cases.Case) -> None:
    data = LayerData(case, Pattern(0.5))
    right = data.dense(data.x, data.weight, data.bias)
    data.verify("right", right)
    for wrong in (math.nan, right.flatten()[-1].item() + 1e-4):
        changed = right.clone()
        changed.view(-1)[-1] = wrong
        with pytest.raises(WrongResultError, match=r"1 of \d+ are wrong"):
            data.verify("wrong", changed)
    with pytest.raises(WrongResultError, match="expected shape"):
        data.verify("short", right[..., :-1])


# ---- result files


def made_up_row(**changes: object) -> Row:
    row = Row(
        suite="kernels", group="linear N>=128", case="linear 8x8 N=128", op="linear", m=8, k=8,
        n=128, pattern="unstructured", sparsity=0.9, nnz=6, threads=1, promised=True,
        contender="kernel", kernel="panel.linear.scalar", rounds=15,
        dense=Timing(Quartiles(1e-3, 2e-3, 3e-3), 0.9e-3, 1),
        sparse=Timing(Quartiles(4e-4, 5e-4, 6e-4), 3e-4, 2),
        speedup=Quartiles(3.5, 4.0, 4.5), dense_bytes=256, packed_bytes=40, copies=(1, 1),
    )  # fmt: skip
    return dataclasses.replace(row, **changes)  # type: ignore[arg-type]


def at(speedup: float, **changes: object) -> Row:
    return made_up_row(speedup=Quartiles(speedup, speedup, speedup), **changes)


def made_up_results(rows: list[Row]) -> Results:
    return Results(
        date="2026-01-02T03:04:05+00:00",
        command="python -m benchmarks.run --suite kernels",
        commit={"hash": "0123456789abcdef", "dirty": False},
        versions={"torch": "2.6.0", "torch_cpu_capability": "AVX2"},
        machine={"cpu": "A CPU", "cores": 2, "os": "An OS"},
        settings={"quick": False},
        complete=True,
        rows=rows,
        failures=[Failure("cold", "a case", "unstructured", 0.5, 1, "it broke")],
        summary=targets.summarise(rows),
    )


def test_result_files_are_read_as_they_were_written() -> None:
    results = made_up_results([made_up_row(), made_up_row(kernel=None, packed_bytes=None)])
    assert Results.from_json(results.to_json()) == results


def test_machine_description_names_no_host_and_no_path() -> None:
    import platform

    described = json.dumps(machine.describe_machine())
    assert "cpu" in described
    assert not re.search(r'"[^"]*/(home|root|tmp|work|usr|var)[^"]*"', described)
    assert f'"{platform.node()}"' not in described


def test_command_does_not_show_the_folders_of_the_machine(tmp_path: Path) -> None:
    options = run.options_of("cold", "1,2", tmp_path / "out.json", quick=True)
    assert options == ["--suite", "cold", "--threads", "1,2", "--out", "out.json", "--quick"]


# ---- the summary


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least one"):
        geometric_mean([])


def test_summary_is_the_geometric_mean_of_the_promised_cases() -> None:
    rows = [at(2.0), at(8.0, case="b"), at(100.0, case="c", promised=False)]
    found = {check.name: check for check in targets.summarise(rows)}
    kernels = found[targets.KERNELS]
    assert (kernels.value, kernels.cases) == (pytest.approx(4.0), 2)
    assert kernels.expected == 4.0
    assert found[targets.PACKED].value == pytest.approx(40 / 256)
    assert found[targets.PACKED].met


@pytest.mark.parametrize(("speedup", "met"), [(3.99, False), (4.01, True)])
def test_summary_says_whether_a_promise_is_kept(speedup: float, met: bool) -> None:
    (kernels, _) = targets.summarise([at(speedup)])
    assert kernels.met is met


def test_module_share_pairs_module_and_kernel_by_case() -> None:
    rows = [
        at(4.0, suite="module"),
        at(3.0, suite="module", contender="module"),
        at(9.0, suite="module", contender="module", case="without its kernel"),
    ]
    share = next(c for c in targets.summarise(rows) if c.name == targets.MODULE_SHARE)
    assert (share.value, share.cases, share.met) == (pytest.approx(0.75), 1, False)


def test_thread_counts_and_sparsities_are_kept_apart() -> None:
    rows = [at(2.0), at(3.0, threads=2), at(1.0, sparsity=0.5)]
    kernels = [check for check in targets.summarise(rows) if check.name == targets.KERNELS]
    assert [(c.threads, c.sparsity, c.value) for c in kernels] == [
        (1, 0.5, pytest.approx(1.0)),
        (1, 0.9, pytest.approx(2.0)),
        (2, 0.9, pytest.approx(3.0)),
    ]


# ---- tables and plot


def test_table_shows_means_and_losses() -> None:
    rows = [at(0.5), at(2.0, case="other"), at(12.34, sparsity=0.95), at(3.0, threads=2)]
    text = table.speedup_tables(made_up_results(rows))
    assert "| linear N>=128 | 1.00 / 3.00 | 12.3 / - |" in text
    assert "| linear 8x8 N=128 | 0.50 / 3.00 | 12.3 / - |" in text
    assert "| cases slower than dense | 1 of 2 / 0 of 1 | 0 of 1 / 0 of 0 |" in text
    assert "commit 0123456789:" in text
    assert "not for quoting" not in text


def test_table_states_the_spread_of_the_figures() -> None:
    rows = [at(2.0)] * 9 + [made_up_row(speedup=Quartiles(3.0, 4.0, 4.4))] * 2
    assert table.spread(rows) == pytest.approx(0.25)
    assert "within 25% of the median" in table.speedup_tables(made_up_results(rows))


def test_table_says_when_a_run_is_partial() -> None:
    results = dataclasses.replace(made_up_results([at(2.0)]), complete=False)
    assert "not for quoting" in table.speedup_tables(results)


def test_formats_are_listed_by_pattern() -> None:
    rows = [
        at(2.0, suite="formats", contender="panel"),
        at(0.1, suite="formats", contender="torch.sparse_csr", kernel=None),
        at(1.5, suite="formats", contender="nm", pattern="2:4", sparsity=0.5),
    ]
    text = table.formats_table(made_up_results(rows), [1])
    assert "| format, cases | 90% | 2:4 |" in text
    assert "| torch.sparse_csr, linear N>=128 | 0.10 | - |" in text
    assert "| nm, linear N>=128 | - | 1.50 |" in text


@dataclass
class MadeUpKernel:
    format: str
    op: str
    dtype: str
    isa: str
    device: str = "cpu"
    weight_types: tuple[str, ...] = ("float32", "bfloat16")


def test_support_table_joins_the_places_a_kernel_runs() -> None:
    text = table.support_table(
        [
            MadeUpKernel("panel", "linear", "float32", "avx512"),
            MadeUpKernel("nm", "linear", "float16", "triton", "cuda"),
            MadeUpKernel("panel", "linear", "float32", "scalar"),
            MadeUpKernel("panel", "linear", "float32, uint8", "avx2", weight_types=("int8",)),
        ]
    )
    assert "| panel | linear | float32, bfloat16 | float32 | avx512, scalar |" in text
    assert "| panel | linear | int8 | float32, uint8 | avx2 |" in text
    assert "| nm | linear | float16 | float16 | triton on cuda |" in text


def test_each_page_gets_its_own_section(tmp_path: Path) -> None:
    speed, support = tmp_path / "speed.md", tmp_path / "support.md"
    speed.write_text("<!-- bench:start -->\n<!-- bench:end -->\n")
    support.write_text("<!-- support:start -->\n<!-- support:end -->\n")
    made_up_results([at(0.5), at(2.0)]).write(tmp_path / "made_up.json")
    table.main(tmp_path / "made_up.json", readme=speed, support=support)
    assert "| linear N>=128 |" in speed.read_text() and "panel" not in speed.read_text()
    assert "| panel | linear | int8 |" in support.read_text()


def test_the_page_of_what_runs_where_is_the_registry() -> None:
    page = (Path(__file__).parents[2] / "docs" / "support.md").read_text("utf-8")
    rows = [row for row in registry.rows() if not row.off]
    assert page == table.replace_section(page, "support", table.support_table(rows))


def test_only_the_marked_section_is_replaced() -> None:
    text = "a\n<!-- bench:start -->\nold\n<!-- bench:end -->\nb\n"
    new = table.replace_section(text, "bench", "new")
    assert new == "a\n<!-- bench:start -->\nnew\n<!-- bench:end -->\nb\n"
    assert table.replace_section(new, "bench", "new") == new


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- bench:start -->",
        "<!-- bench:end --><!-- bench:start -->",
        "<!-- bench:start --><!-- bench:start --><!-- bench:end -->",
        "<!-- bench:start --><!-- bench:end --><!-- bench:end -->",
    ],
)
def test_missing_or_doubled_markers_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="bench:start"):
        table.replace_section(text, "bench", "new")


def test_break_even_follows_the_plotted_line() -> None:
    assert plot.break_even([(0.0, 0.5), (0.75, 2.0)]) == pytest.approx(0.5)
    assert plot.break_even([(0.0, 1.2), (0.5, 0.9), (0.9, 0.9)]) is None
    assert plot.break_even([(0.0, 1.2), (0.9, 3.0)]) == 0.0
    # A dip below 1 counts: from there on it must pay for good.
    at_last = plot.break_even([(0.0, 1.2), (0.5, 0.8), (0.9, 3.0)])
    assert at_last is not None and 0.5 < at_last < 0.9


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(0.01, 2))
def test_labels_keep_their_distance_and_order(heights: list[float], gap: float) -> None:
    moved = plot.spread_labels(heights, gap)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    for low, high in itertools.pairwise(order):
        assert moved[high] - moved[low] >= gap * (1 - 1e-6)


def test_plot_is_a_png(tmp_path: Path) -> None:
    rows = [at(s / (1 - s), sparsity=s, threads=t) for s in (0.3, 0.6, 0.9) for t in (1, 2)]
    plot.draw(made_up_results(rows), table.GROUPS, table.KERNEL_SUITES, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="got none"):
        plot.draw(made_up_results([]), table.GROUPS, table.KERNEL_SUITES, tmp_path / "none.png")
