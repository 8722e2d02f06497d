"""Names and comments in C, of whatever a model calls its parts."""

from __future__ import annotations

import re

from sparseinfer import __version__

__all__ = ["assembler_text", "comment_text", "file_names", "identifier", "written_by"]

TAKEN = ("main", "si", "sparseinfer")
"""Names whose files or symbols would meet those of a program, or of the library."""


def identifier(text: str) -> str:
    """A name for C, in lower case, that is like this one.

    Example:
        >>> identifier("My-Net.v2"), identifier("3 layers"), identifier(""), identifier("main")
        ('my_net_v2', 'model_3_layers', 'model', 'model_main')
    """
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    if not name or name[0].isdigit() or name in TAKEN:
        name = f"model_{name}".rstrip("_")
    return name


def file_names(format: str, name: str) -> list[str]:
    """The files that a format has; plain C of a model without constants has the first two.

    Example:
        >>> file_names("c", "net"), file_names("amalgamation", "net")
        (['net.h', 'net.S', 'net.sinf'], ['sparseinfer.h', 'sparseinfer.c', 'net.S', 'net.bin'])
    """
    own = identifier(name)
    if format == "c":
        return [f"{own}.h", f"{own}.S", f"{own}.sinf"]
    return ["sparseinfer.h", "sparseinfer.c", f"{own}.S", f"{own}.bin"]


def comment_text(text: str) -> str:
    """A name within a comment, which it cannot end.

    Example:
        >>> comment_text("fc1 */ int x;")
        'fc1 *_ int x;'
    """
    return re.sub(r"[^\w .,:;()\[\]*+=-]", "_", text, flags=re.ASCII)


def written_by() -> str:
    return f"Written by sparseinfer {__version__}. SPDX-License-Identifier: Apache-2.0"


def assembler_text(symbol: str, file: str, align: int) -> str:
    """An assembler file that has a file's bytes under a symbol, as an object of their own.

    Example:
        >>> '.incbin "net.bin"' in assembler_text("net_weights", "net.bin", 16)
        True
    """
    return f"""/* The bytes of {file}, which the assembler looks for along -I. {written_by()} */
#ifdef __APPLE__
.const
.globl _{symbol}
.balign {align}
_{symbol}:
.incbin "{file}"
#else
.section .rodata.{symbol}, "a"
.globl {symbol}
.type {symbol}, %object
.balign {align}
{symbol}:
.incbin "{file}"
.size {symbol}, . - {symbol}
#ifdef __linux__
.section .note.GNU-stack, "", %progbits
#endif
#endif
"""
