"""A report in sentences: what became of the whole model, and what made its timings uncertain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparseinfer.convert.report_tables import number
from sparseinfer.timing.clock import BUSY
from sparseinfer.timing.measure import CONFIDENCE

if TYPE_CHECKING:
    from sparseinfer.convert.model_report import Report, Whole

__all__ = ["outcome", "warning"]


def outcome(whole: Whole) -> str:
    """What converting did to the whole model, as the end of a sentence.

    Example:
        >>> from sparseinfer.convert.model_report import Whole
        >>> outcome(Whole("eager", 0.02, 2.0, 1.0, 2.0, 1.9, 2.1)).partition(", so ")[2]
        'it got faster.'
    """
    back = f"{len(whole.reverted)} layer{'s' if len(whole.reverted) > 1 else ''}"
    if whole.speedup is None or whole.low is None or whole.high is None:
        return (
            f": with {back} that gained alone the whole model ran {whole.before:.2f}x "
            f"({whole.before_low:.2f}x is sure), so they were taken back and "
            "it is as fast as it was."
        )
    verdict = "got faster" if whole.low > 1 else "is about as fast as it was"
    if whole.high < 1:
        verdict = "got slower"
    against = {"channels_last": " in channels_last", "compile": ", both compiled"}
    text = (
        f"; the whole model takes {number(whole.sparse_ms)} ms instead of "
        f"{number(whole.dense_ms)} ms dense{against.get(whole.baseline, '')} "
        f"({whole.speedup:.2f}x, {CONFIDENCE} sure of {whole.low:.2f}x), so it {verdict}."
    )
    if whole.reverted:
        were, them = ("were", "them") if len(whole.reverted) > 1 else ("was", "it")
        text += f" {back} {were} taken back; with {them} the model ran {whole.before:.2f}x."
    return text


def warning(report: Report) -> str:
    """What made the measurements uncertain and what to do about it; empty where nothing did.

    Example:
        >>> from sparseinfer.convert.model_report import Report
        >>> warning(Report([], True, 2, measured=8, busy=0.43)).partition(":")[0]
        'This machine is busy'
    """
    doubted = ""
    if report.doubted:
        doubted = f"; {report.doubted} comparisons are in doubt, and are not kept"
    if report.busy > BUSY:
        load = "" if report.load is None else f" (load average {report.load:.1f})"
        return (
            f"This machine is busy: other programs had the processor for {report.busy:.0%} of the "
            f"time that was measured{load}{doubted}. Stop them, or convert again when it is quiet."
        )
    if report.doubted:
        return (
            f"Some timings do not fit each other or the zeros{doubted}. "
            "Convert again when the machine is quiet."
        )
    return ""
