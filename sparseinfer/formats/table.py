"""The table of formats: which there are, and what Python knows of each.

The native table (csrc/formats/formats.inc) says which formats can be packed. A format whose
weights conversion shall try, or that is packed on other devices, has a row here.
"""

from __future__ import annotations

from sparseinfer import native
from sparseinfer.formats import bsr, csr, nm, panel
from sparseinfer.formats.format import Format

__all__ = ["FORMATS", "TABLE", "check_format", "format_named"]

FORMATS: tuple[str, ...] = tuple(format["name"] for format in native.formats())
"""Names of the packed formats."""

TABLE: tuple[Format, ...] = (panel.FORMAT, nm.FORMAT, bsr.FORMAT, csr.FORMAT)
"""In the order in which conversion tries them."""

_BY_NAME = {name: Format(name) for name in FORMATS} | {row.name: row for row in TABLE}


def check_format(name: str) -> None:
    """Raise ValueError, with the known names, unless `name` is a packed format.

    Example:
        >>> check_format("panel")
    """
    if name not in FORMATS:
        raise ValueError(
            f"expected a format of {', '.join(FORMATS)}, got {name!r}; try format='panel'"
        )


def format_named(name: str) -> Format:
    """The row of a packed format.

    Raises:
        ValueError: there is no such format.

    Example:
        >>> format_named("nm").options
        ('n', 'm')
    """
    check_format(name)
    return _BY_NAME[name]
