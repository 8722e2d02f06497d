"""A report as HTML, for notebooks: the verdict, the table of its rows, and the reasons, escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from sparseinfer.convert.report_tables import cells, remarks

if TYPE_CHECKING:
    from sparseinfer.convert.model_report import Report

__all__ = ["to_html"]


def to_html(report: Report) -> str:
    """The report as a piece of HTML.

    Example:
        >>> from sparseinfer.convert.model_report import Report
        >>> to_html(Report(layers=[])).startswith("<p><b>The model has no linear")
        True
    """
    parts = [f"<p><b>{escape(report.sentence)}</b></p>"]
    if report.warning:
        parts.append(f"<p>{escape(report.warning)}</p>")
    head, body, foot = cells(report)
    parts.append(f"<table><caption>{escape(report.title)}</caption>")
    parts.append(f"<thead>{_line(head, 'th')}</thead>")
    parts.append("<tbody>" + "".join(_line(line, "td") for line in body) + "</tbody>")
    parts.append("<tfoot>" + "".join(_line(line, "td") for line in foot) + "</tfoot></table>")
    told = remarks(report)
    if told:
        items = "".join(
            f"<li>{escape(', '.join(names))}: {escape(remark)}</li>" for remark, names in told
        )
        parts.append(f"<details><summary>why layers stay as they are</summary><ul>{items}</ul>")
        parts.append("</details>")
    return "".join(parts)


def _line(values: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values) + "</tr>"
