"""What the plots share: matplotlib, which is optional, and legends that show any name."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseinfer.files import write_bytes

__all__ = ["name_lines", "need_matplotlib", "write_figure"]


def need_matplotlib() -> None:
    """Raise ImportError, with what to install, where matplotlib is not there.

    Example:
        >>> need_matplotlib()
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "expected matplotlib to draw a plot, got none installed; try "
            "pip install 'sparseinfer[plot]'"
        )


def name_lines(axis: Any, lines: Sequence[Any], names: Sequence[str], **options: Any) -> None:
    """Give the axes of matplotlib a legend of these lines by these names, read as plain text.

    Matplotlib leaves out a label that begins with an underscore, and reads one with two dollar
    signs as a formula. `options` are those of its `legend`.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axis = Figure().subplots()
        >>> name_lines(axis, axis.plot([0, 1], [1, 0]), ["_fc.weight"])
        >>> [text.get_text() for text in axis.get_legend().get_texts()]
        ['_fc.weight']
    """
    legend = axis.legend(lines, [str(place) for place in range(len(lines))], **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def write_figure(figure: Any, path: str | os.PathLike[str], kind: str = "png") -> None:
    """Write a figure of matplotlib whole, as a file of this kind, and its folder if there is none.

    Raises:
        ValueError: matplotlib writes no such files.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> path = Path(tempfile.mkdtemp(), "plots", "empty.png")
        >>> write_figure(Figure(), path)
        >>> path.read_bytes()[1:4]
        b'PNG'
    """
    stream = io.BytesIO()
    figure.savefig(stream, format=kind)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, stream.getvalue())
