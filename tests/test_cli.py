"""The command: help, versions, one-line errors, and a doctor that never fails with a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

import sparseinfer
from sparseinfer import cli
from sparseinfer.commands import doctor
from sparseinfer.timing import machine


def run(capsys, *arguments):
    """Run the command in this process: exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"sparseinfer {sparseinfer.__version__}\n", "")


@pytest.mark.parametrize("command", [(), ("demo",), ("doctor",)])
def test_help_has_examples(capsys, command):
    code, out, err = run(capsys, *command, "--help")
    assert (code, err) == (0, "")
    assert "Examples:" in out
    assert f"sparseinfer {' '.join(command)}".strip() in out


def test_no_arguments_print_the_help_and_fail(capsys):
    code, out, err = run(capsys)
    assert code == 2
    assert "demo" in out + err and "doctor" in out + err
    assert "error" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dem"], "No such command"),
        (["demo", "--sparsity", "90"], "'--sparsity'"),
        (["demo", "--epochs", "0"], "'--epochs'"),
        (["demo", "--threads", "many"], "'--threads'"),
        (["demo", "--nonsense"], "No such option"),
        (["doctor", "extra"], "unexpected extra argument"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("sparseinfer: error: ") and err.count("\n") == 1
    assert message in err


def test_data_that_cannot_be_used_is_one_line_and_code_2(capsys, tmp_path):
    code, _, err = run(capsys, "demo", "--data", str(tmp_path / "absent"), "--out", str(tmp_path))
    assert code == 2
    assert err.startswith("sparseinfer: error: ") and err.count("\n") == 1
    assert "absent: expected a folder with IDX files" in err


def test_an_output_folder_that_cannot_be_written_is_told_before_the_work(capsys, tmp_path):
    target = tmp_path / "file"
    target.write_text("in the way")
    code, out, err = run(capsys, "demo", "--out", str(target))
    assert code == 2 and out == ""
    assert err == f"sparseinfer: error: {target}: File exists\n"


def test_a_missing_package_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sparseinfer.demo", None)
    monkeypatch.delattr(sparseinfer, "demo", raising=False)
    code, _, err = run(capsys, "demo")
    assert code == 2
    assert "sparseinfer: error: the demo needs a package" in err and err.count("\n") == 1


def test_interruption_is_one_line(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "diagnose", interrupt)
    assert run(capsys, "doctor") == (130, "", "sparseinfer: error: interrupted\n")


def test_python_m_runs_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "sparseinfer", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"sparseinfer {sparseinfer.__version__}\n"


# --- doctor


def test_doctor_finds_this_machine_able(capsys):
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "")
    for word in ("versions", "processor", "kernels", "threads", "GPU", "verdict", "torch"):
        assert word in out
    assert "linear layers run sparse here" in out
    assert "convolutions run sparse here" in out


def test_doctor_lists_every_row_with_its_reason(capsys):
    from sparseinfer.kernels.registry import rows

    code, out, _ = run(capsys, "doctor", "--json")
    diagnosis = json.loads(out)
    assert code == 0
    assert [row["name"] for row in diagnosis["rows"]["rows"]] == [row.name for row in rows()]
    text = shown(diagnosis)
    for row in rows():
        assert f" {row.name.removesuffix(f'.{row.isa}')} " in text
        assert all(reason in text for reason in row.machine_reasons())


def shown(diagnosis):
    stream = io.StringIO()
    doctor.show(diagnosis, Console(file=stream, width=200))
    return stream.getvalue()


def test_doctor_obeys_and_shows_the_forced_instruction_set():
    done = subprocess.run(
        [sys.executable, "-m", "sparseinfer", "doctor"],
        capture_output=True,
        text=True,
        env={**os.environ, "SPARSEINFER_ISA": "scalar"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "instruction set selected: scalar (SPARSEINFER_ISA=scalar)" in done.stdout


@pytest.mark.parametrize(
    "module",
    ["sparseinfer.native", "sparseinfer.kernels.registry", "torch", "triton", "threadpoolctl"],
)
def test_doctor_survives_whatever_cannot_be_imported(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    if module == "sparseinfer.native":
        monkeypatch.delattr(sparseinfer, "native")
    if module == "sparseinfer.kernels.registry":
        monkeypatch.delattr(sparseinfer.kernels, "registry")
    diagnosis = doctor.diagnose()
    text = shown(diagnosis)
    json.dumps(diagnosis)
    assert "verdict" in text
    if module == "sparseinfer.native":
        assert "the native library cannot be used: " in text
    if module == "torch":
        assert not doctor.healthy(diagnosis)
        assert "cannot run sparse here" in text
        assert diagnosis["versions"]["torch"] == "not installed"
    if module == "threadpoolctl":
        assert "pip install threadpoolctl" in text


def test_doctor_fails_where_a_kernel_computes_nonsense(monkeypatch, capsys):
    from sparseinfer.layers.linear_conv import SparseLinear

    real = SparseLinear.forward
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: real(self, x) + 1.0)
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "linear layers cannot run sparse here" in out
    assert "convolutions run sparse here" in out


def test_doctor_points_at_two_openmp_runtimes():
    diagnosis = doctor.diagnose()
    diagnosis["threads"]["openmp_runtimes"] = ["libgomp.so.1", "libiomp5.so"]
    diagnosis["threads"]["torch_threads"] = diagnosis["threads"]["usable_cores"] + 1
    text = shown(diagnosis)
    assert "2 OpenMP runtimes are loaded (libgomp.so.1, libiomp5.so)" in text
    assert "more threads than cores is slow" in text


def test_machine_survives_a_system_without_cpuinfo(tmp_path):
    assert machine._cpuinfo(tmp_path / "absent") == {}
    (tmp_path / "garbage").write_bytes(b"\xff\xfe no colon here\n\n")
    assert isinstance(machine._cpuinfo(tmp_path / "garbage"), dict)
