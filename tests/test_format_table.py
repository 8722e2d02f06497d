"""The table of formats, and that nothing beside it tells formats apart by their names."""

import ast
from pathlib import Path

import pytest
import torch

from sparseinfer import formats, native
from sparseinfer.formats.format import Format, PrunedWeight
from sparseinfer.formats.patterns import Pattern
from sparseinfer.formats.table import TABLE, format_named

PACKAGE = Path(formats.__file__).parent.parent
NATIVE = {format["name"]: format for format in native.formats()}


def compared(source: str) -> list[str]:
    """The names of formats that a source compares something with."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                items = side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]
                found += [own.value for own in items if isinstance(own, ast.Constant)]
    return [name for name in found if name in NATIVE]


def test_no_code_compares_the_name_of_a_format() -> None:
    # The cost model, below the formats, names them by the rates that were measured.
    files = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "timing")
    named = {str(path): found for path in files if (found := compared(path.read_text("utf-8")))}
    assert files and named == {}


def test_a_comparison_is_found() -> None:
    assert compared("if format == 'nm' or format in ('bsr', 'other'): pass") == ["nm", "bsr"]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_row_names_a_format_and_its_parameters(row: Format) -> None:
    assert set(row.options) <= set(NATIVE[row.name]["params"])
    packed = formats.pack(torch.eye(16), row.name)
    told = {name: formats.info(packed)["params"][name] for name in row.options}
    assert torch.equal(formats.pack(torch.eye(16), row.name, **told), packed)
    stored = NATIVE[row.name]["value_types"]
    assert row.narrow != "kept" or {"float16", "bfloat16"} <= set(stored)


@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_becomes_of_narrow_weights(name: str, dtype: torch.dtype) -> None:
    weight = torch.eye(16, dtype=dtype)
    narrow = format_named(name).narrow
    if narrow == "refused":
        with pytest.raises(TypeError, match="expected a float32 weight"):
            formats.pack(weight, name)
        return
    stored = formats.info(formats.pack(weight, name))["value_type"]
    assert stored == (str(dtype).removeprefix("torch.") if narrow == "kept" else "float32")


def test_a_format_without_a_row_can_be_packed_and_is_never_tried() -> None:
    row = Format("none")
    weight = PrunedWeight("linear", 0.01, Pattern("block", (64, 64)))
    assert not row.suits(weight) and not row.on_cpu and row.params(weight) == {}
    assert row.on_device is None and row.adopted(torch.eye(2), {"n": 1}) == {"n": 1}


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a format of panel, .*, got 'none'; try format"):
        format_named("none")
