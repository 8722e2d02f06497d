"""The guard of instruction counts: what it reads from profiles and disassemblies, and compares."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import instructions
from benchmarks.instructions import TARGETS, Loops

ROOT = Path(__file__).resolve().parents[2]
AVX512, NEON = TARGETS

PROFILE = """
events: Ir

ob=(1) /lib/libc.so.6
fn=(1) memcpy
10 1000
ob=(2) /somewhere/kernel_calls
fn=(2) si_linear
20 7
+3 5
cob=(1)
cfn=(1)
calls=2 10
* 2000
-2 4
ob=(1)
fn=(1)
10 30
ob=(2)
fn=(3) panel
* 11
totals: 3057
"""


def test_a_profile_counts_what_the_program_itself_ran() -> None:
    assert instructions.own_instructions(PROFILE, "kernel_calls") == 7 + 5 + 4 + 11
    assert instructions.own_instructions(PROFILE, "libc.so.6") == 1030


# An outer loop around two loops that multiply and add, one that copies, and a forward jump.
X86 = """
0000000000000000 <void si::(anonymous namespace)::f<si::(anonymous namespace)::V, 6>(si::W const&)>:
   0:\tvmovups (%rax),%zmm1
   4:\tvbroadcastss (%rdx,%rcx,4),%zmm0
   8:\tvfmadd231ps %zmm0,%zmm1,%zmm8
   c:\tvfmadd231ps 0x40(%rax){1to16},%zmm1,%zmm9
  10:\tvmovups %zmm8,(%rdi)
  14:\tjne    0 <void si::(anonymous namespace)::f<int>(int)>
  18:\tje     30 <void si::(anonymous namespace)::f<int>(int)+0x30>
  1c:\tlea    (%rax,%rbx,4),%rsi
  20:\tvfmadd132ps %zmm2,%zmm1,%zmm3
  24:\tvfnmadd213ps (%rsi),%zmm1,%zmm3
  28:\tjb     1c <void si::(anonymous namespace)::f<int>(int)+0x1c>
  2c:\tvmovups (%rax),%zmm1
  30:\tvmovups %zmm1,(%rdi)
  34:\tjne    2c <void si::(anonymous namespace)::f<int>(int)+0x2c>
  38:\tjmp    0 <void si::(anonymous namespace)::f<int>(int)>
  3c:\tret

0000000000000040 <si::g()>:
  40:\tret
"""

ARM = """
0000000000000000 <void si::(anonymous namespace)::f<int>(int)>:
   0:\tldrh\tw2, [x18, x3, lsl #1]
   4:\tldp\tq29, q28, [x6, #16]
   8:\tld1r\t{v1.4s}, [x0]
   c:\tfmla\tv1.4s, v24.4s, v23.s[0]
  10:\tstr\tq1, [x0]
  14:\tb.ne\t0 <void si::(anonymous namespace)::f<int>(int)>  // b.any
  18:\tfmadd\ts0, s1, s2, s0
  1c:\tcbnz\tw2, 18 <void si::(anonymous namespace)::f<int>(int)+0x18>
  20:\tb\t0 <void si::(anonymous namespace)::f<int>(int)>
"""


def test_a_disassembly_is_cut_in_functions_with_plain_names() -> None:
    functions = dict(instructions.functions_of(X86))
    assert list(functions) == ["f<V, 6>", "g"]
    assert functions["g"] == [(0x40, "ret")]
    assert functions["f<V, 6>"][0] == (0, "vmovups (%rax),%zmm1")


def test_innermost_loops_that_multiply_and_add_are_counted() -> None:
    (_, x86), *_ = instructions.functions_of(X86)
    assert instructions.loops_of(x86, AVX512) == {2: Loops(2, 6 + 4, 3 + 1, 2)}
    ((_, arm),) = instructions.functions_of(ARM)
    assert instructions.loops_of(arm, NEON) == {1: Loops(2, 6 + 2, 3, 1)}


def test_counts_may_move_by_three_percent() -> None:
    expected = {"compilers": {"a": "gcc 12"}, "calls": {"x": 1000, "y": 1000, "z": 1000}}
    same: dict[str, Any] = {"compilers": {"a": "gcc 12"}, "calls": {"x": 1030, "y": 970, "z": 1000}}
    assert list(instructions.differences(expected, same)) == []
    moved = {"compilers": {"a": "gcc 13"}, "calls": {"x": 1031, "y": 969, "w": 1}}
    assert list(instructions.differences(expected, moved)) == [
        "calls, w: expected None, got 1",
        "calls, x: expected 1,000, got 1,031 (+3.1%)",
        "calls, y: expected 1,000, got 969 (-3.1%)",
        "calls, z: expected 1000, got None",
        "compilers, a: expected gcc 12, got gcc 13",
    ]


def test_recorded_counts_agree_until_they_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"calls": {"x": 100}, "loops": {"f": {"6 fma": {"loops": 1, "instructions": 9}}}}
    monkeypatch.setattr(instructions, "count", lambda build, neon: found)
    app = instructions.typer.Typer()
    app.command()(instructions.main)
    file = tmp_path / "counts.json"

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*arguments, "--counts", str(file)])
        return done.exit_code, done.output

    assert run("--record")[0] == 0
    assert json.loads(file.read_text(encoding="utf-8")) == found
    assert run()[0] == 0
    found["calls"]["x"] = 104
    status, text = run()
    assert status == 1
    assert "calls, x: expected 100, got 104 (+4.0%)" in text and instructions.RECORD in text
    assert run("--record")[0] == 0 and run()[0] == 0


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(instructions.CountError, match="kernel_calls, got no such file"):
        instructions.count_calls(tmp_path)
    with pytest.raises(instructions.CountError, match=r"avx512\.cc\.o, got no such file"):
        instructions.count_loops(AVX512, tmp_path)
    (tmp_path / instructions.ISA_OBJECTS).mkdir(parents=True)
    (tmp_path / instructions.ISA_OBJECTS / "avx512.cc.o").touch()
    monkeypatch.setattr(instructions, "_run", lambda command: X86)
    with pytest.raises(instructions.CountError, match="expected functions named as"):
        instructions.count_loops(AVX512, tmp_path)
    monkeypatch.undo()
    with pytest.raises(instructions.CountError, match="expected no-such-tool on PATH"):
        instructions._run(["no-such-tool"])


def test_the_committed_counts_cover_the_problems_and_functions() -> None:
    counts = json.loads(instructions.COUNTS.read_text(encoding="utf-8"))
    source = (ROOT / "csrc" / "testing" / "kernel_calls.cc").read_text(encoding="utf-8")
    assert list(counts["calls"]) == re.findall(r'\{"((?:linear|conv) [^"]+)"', source)
    assert list(counts["loops"]) == [target.name for target in TARGETS]
    for functions in counts["loops"].values():
        assert all(re.fullmatch(instructions.FUNCTIONS, name) for name in functions)
        tiles = [name for name in functions if name.startswith("panel_tile_width<")]
        assert {name.split(", ")[1] for name in tiles} == {"1", "6"}
        assert all(functions.values())
    assert all(counts["calls"].values())
    assert set(counts["compilers"]) == {target.name for target in TARGETS}
