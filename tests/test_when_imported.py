"""`when_imported`: code that runs once another module is imported, which it does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from sparseinfer.when_imported import when_imported
seen = []
when_imported("wanted.inner", lambda module: seen.append((module.__name__, module.VALUE)))
assert "wanted" not in sys.modules
import wanted
assert seen == []
import wanted.inner
assert seen == [("wanted.inner", 3)]
import importlib.resources
assert importlib.resources.files("wanted").joinpath("text.txt").read_text() == "hello"
assert type(wanted.inner.__loader__).__name__ == "SourceFileLoader"
when_imported("wanted.inner", lambda module: seen.append("at once"))
assert seen[1:] == ["at once"]
import importlib.util
when_imported("absent_module", seen.append)
assert importlib.util.find_spec("absent_module") is None
"""


@pytest.mark.sampled(1)
@pytest.mark.parametrize("packaged", [False, True])
def test_it_runs_after_the_import(tmp_path: Path, packaged: bool) -> None:
    package = tmp_path / "wanted"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "text.txt").write_text("hello")
    if packaged:
        (package / "inner").mkdir()
        (package / "inner/__init__.py").write_text("VALUE = 3\n")
    else:
        (package / "inner.py").write_text("VALUE = 3\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{CODE}"
    subprocess.run([sys.executable, "-c", code], check=True)
