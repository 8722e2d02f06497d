"""What the site takes from outside docs/: the README as its home, top-level pages, results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

OUTSIDE = (
    "DECISIONS.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "csrc/README.md",
    "csrc/formats/LAYOUT.md",
    "csrc/runtime/FORMAT.md",
    "csrc/include/sparseinfer.h",
    *(str(path.relative_to(ROOT)) for path in ROOT.glob("benchmarks/results/**/*.*")),
    *(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/**/*.*")),
)
"""Files that pages link to, kept at their own places under the site's root."""


def on_files(files: Any, config: Any) -> Any:
    """Add the README as the home page, and what pages outside docs/ are linked to."""
    from mkdocs.structure.files import File

    files.append(
        File.generated(config, "index.md", content=(ROOT / "README.md").read_text("utf-8"))
    )
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **given: Any) -> str:
    """Point links at where the site keeps what they name: docs/ is its root."""
    here = page.file.src_uri
    if here == "index.md" or here in OUTSIDE:
        return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
    return re.sub(r"\]\(\.\./(?=(?:\.\./)*[\w])", "](", markdown)
