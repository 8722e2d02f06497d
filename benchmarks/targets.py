"""What the rows amount to: the geometric means, and the figures promised for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.linearity import SUITE, lines_of
from benchmarks.results import Check, Row, geometric_mean

KERNELS = "kernels: speed-up"
MODULE = "module: speed-up"
MODULE_SHARE = "module: share of kernel"
COLD = "cold: speed-up"
THREADS = "threads: apart over in turns"
PACKED = "packed bytes / dense, largest"
LINEARITY = "linearity: off the line"

# By sparsity, on AVX-512 in float32, at one thread and at two.
EXPECTED: dict[str, dict[float, float]] = {
    KERNELS: {0.0: 0.85, 0.5: 1.3, 0.7: 1.8, 0.8: 2.7, 0.9: 4.0, 0.95: 6.5},
    COLD: {0.5: 1.4, 0.8: 2.5, 0.9: 4.5},
    THREADS: {0.9: 0.95},
    PACKED: {0.9: 0.18},
}
EXPECTED_SHARE = 0.85
MOST_OFF_THE_LINE = 0.15
"""Time against non-zeros times N, on logarithmic axes: distance from a straight line."""


def _speedup(row: Row) -> float:
    return row.speedup.median


def _check(name: str, rows: Sequence[Row], value: Callable[[Row], float]) -> Check:
    first = rows[0]
    expected = EXPECTED.get(name, {}).get(first.sparsity)
    mean = geometric_mean(value(row) for row in rows)
    return Check(name, first.sparsity, first.threads, mean, len(rows), expected)


def summarise(rows: Sequence[Row]) -> list[Check]:
    """Return the summary figures of the suites that ``rows`` come from.

    Speed-ups are geometric means over the promised cases; a mean is given only where every row it
    needs is there by name, so a partial file gives fewer cases, never other ones.
    """
    promised = [row for row in rows if row.promised and row.pattern == "unstructured"]
    keys = sorted({(row.threads, row.sparsity) for row in rows if row.pattern == "unstructured"})
    checks = []
    for threads, sparsity in keys:

        def pick(
            suite: str,
            contender: str,
            among: Sequence[Row] = promised,
            key: tuple[int, float] = (threads, sparsity),
        ) -> list[Row]:
            return [
                row
                for row in among
                if (row.threads, row.sparsity) == key
                and (row.suite, row.contender) == (suite, contender)
            ]

        kernels = pick("kernels", "kernel")
        if kernels:
            checks.append(_check(KERNELS, kernels, _speedup))
            sizes = [row.packed_bytes / row.dense_bytes for row in kernels if row.packed_bytes]
            expected = EXPECTED[PACKED].get(sparsity)
            checks.append(
                Check(PACKED, sparsity, threads, max(sizes), len(sizes), expected, at_most=True)
            )
        module, beside = pick("module", "module"), pick("module", "kernel")
        if module:
            checks.append(_check(MODULE, module, _speedup))
        # The kernel was timed in the same rounds as the module, so the two pair up by case.
        kernel_of = {row.case: row for row in beside}
        pairs = [(row, kernel_of[row.case]) for row in module if row.case in kernel_of]
        if pairs:
            share = geometric_mean(_speedup(ours) / _speedup(kernel) for ours, kernel in pairs)
            checks.append(Check(MODULE_SHARE, sparsity, threads, share, len(pairs), EXPECTED_SHARE))
        cold = pick("cold", "kernel", rows)
        if cold:
            checks.append(_check(COLD, cold, _speedup))
        alternating = pick("threads", "in turns", rows)
        if alternating:
            checks.append(_check(THREADS, alternating, _speedup))
    pruned = {row.suite: row.sparsity for row in rows}
    for line in lines_of(rows):
        checks.append(
            Check(
                f"{LINEARITY}, N={line.n}", pruned[SUITE], line.threads, line.deviation,
                len(line.work), MOST_OFF_THE_LINE, at_most=True,
            )
        )  # fmt: skip
    return checks
