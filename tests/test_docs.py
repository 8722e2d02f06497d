"""The README and docs/: snippets run, links lead to files, the list of decisions is whole."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text("utf-8")]


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_snippets_run_one_after_the_other(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEINFER_CACHE", "off")
    namespace: dict[str, object] = {}
    hidden = re.findall(r"^<!-- setup\n(.*?)^-->", page.read_text("utf-8"), re.M | re.S)
    for code in (*hidden, *blocks(page, "python")):
        exec(compile(code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if not target.startswith(("https://", "http://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 200


def test_every_decision_is_listed_and_every_listed_one_is_there():
    listed = (ROOT / "DECISIONS.md").read_text("utf-8")
    for chapter in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        part = listed.split(f"(docs/decisions/{chapter.name})", 1)[1].split("\n## ", 1)[0]
        names = [line[2:] for line in part.splitlines() if line.startswith("- ")]
        entries = re.findall(r"^\*\*(.+?)\*\*", chapter.read_text("utf-8"), re.MULTILINE)
        assert names == [entry.rstrip(".,;:") for entry in entries], chapter.name


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler; it would build the example")
def test_the_example_in_c_compiles(tmp_path):
    (code,) = blocks(ROOT / "docs" / "c-api.md", "c")
    (tmp_path / "example.c").write_text(code, "utf-8")
    include = ROOT / "csrc" / "include"
    subprocess.run(
        ["cc", "-std=c99", "-Wall", "-Werror", f"-I{include}", "-c", "example.c"],
        cwd=tmp_path,
        check=True,
    )
