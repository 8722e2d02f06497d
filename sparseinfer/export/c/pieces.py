"""The plain C of `embedded/`: what of it a model needs, as one text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Pieces", "join_pieces"]

EMBEDDED = Path(__file__).parent / "embedded"
INCLUDE = re.compile(r'#include (?:"([\w/]+\.h)"|<(\w+\.h)>)\n')


class Pieces:
    """Pieces and what they include, each once and after all that it includes."""

    def __init__(self) -> None:
        self.system: list[str] = []
        self.texts: dict[str, str] = {}

    def add(self, name: str) -> None:
        """Take a piece: a file of `embedded/`."""
        if name in self.texts:
            return
        text = (EMBEDDED / name).read_text("utf-8")
        for own, system in INCLUDE.findall(text):
            if own:
                self.add(own)
            else:
                self.system.append(system)
        self.texts[name] = INCLUDE.sub("", text.replace("#pragma once\n", "")).strip()


def join_pieces(names: Iterable[str]) -> str:
    """One text of these pieces, the headers of the C library first.

    Example:
        >>> text = join_pieces(["quantize.h"])
        >>> text.startswith("#include <stdint.h>"), text.count("struct to_byte {")
        (True, 1)
    """
    pieces = Pieces()
    for name in names:
        pieces.add(name)
    system = "".join(f"#include <{name}>\n" for name in sorted(set(pieces.system)))
    texts = (re.sub(r"\n{3,}", "\n\n", text) for text in pieces.texts.values())
    return system + "\n" + "\n\n".join(texts) + "\n"
