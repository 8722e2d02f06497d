"""Files appear whole or not at all, whatever happens to their writers."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import sparseinfer
from sparseinfer import files
from sparseinfer.checkpoints import Recipe, load_sparse, prune_checkpoint, save_sparse
from sparseinfer.checkpoints.sensitivity import WeightErrors
from sparseinfer.convert.model_report import Report
from sparseinfer.files import check_target, staged, staged_folder, sweep, write_bytes, write_text
from sparseinfer.timing import calibration

LEFT = f".sparseinfer-{'0' * 32}.tmp"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- one file


def test_a_failure_leaves_the_target_as_it_was(tmp_path):
    target, other = tmp_path / "model.pth", tmp_path / "other.pth"
    target.write_text("before")
    with pytest.raises(RuntimeError, match="midway"), staged([target, other]) as (first, _):
        first.write_text("half of")
        raise RuntimeError("midway")
    assert target.read_text() == "before"
    assert names(tmp_path) == ["model.pth"]


def test_permissions_stay_and_new_files_have_the_usual_ones(tmp_path):
    old, new, usual = (tmp_path / name for name in ("old", "new", "usual"))
    old.touch(mode=0o640)
    usual.touch()
    with staged([old, new]) as unfinished:
        for path in unfinished:
            path.unlink()
            path.touch(mode=0o600)
    assert old.stat().st_mode & 0o777 == 0o640
    assert new.stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("mask", [0o000, 0o027, 0o077])
def test_new_files_have_the_permissions_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "file", b"content")
        with staged_folder(tmp_path / "folder") as folder:
            write_text(folder / "file", "content")
        sparseinfer.save_sparse(nn.Linear(4, 4), tmp_path / "model")
    finally:
        os.umask(before)
    written = ["file", "folder/file", "model/model.safetensors", "model/config.json"]
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in written} == {0o666 & ~mask}
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "n" * 243 + ".safetensors"])
def test_names_as_long_as_the_file_system_has_them(tmp_path, name):
    write_bytes(tmp_path / name, b"first")
    write_bytes(tmp_path / name, b"second")
    assert (tmp_path / name).read_bytes() == b"second" and names(tmp_path) == [name]
    if name.endswith(".safetensors"):
        save_sparse(nn.Linear(4, 4), tmp_path / name)
        assert load_sparse(tmp_path / name).keys() == {"weight", "bias"}


def test_links_stay_and_what_they_name_is_written(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "blob").write_text("before")
    (tmp_path / "link").symlink_to("blobs/blob")
    (tmp_path / "new").symlink_to("blobs/other")
    for name, blob in (("link", "blob"), ("new", "other")):
        write_text(tmp_path / name, "after")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "blobs" / blob).read_text() == "after"
    assert names(tmp_path) == ["blobs", "link", "new"]
    assert names(tmp_path / "blobs") == ["blob", "other"]


def test_what_is_no_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        for path in ("/dev/null", *(tmp_path / name for name in names(tmp_path))):
            kind = os.stat(path).st_mode
            with pytest.raises(OSError, match=r"expected a .*file or none, got .*; try"):
                write_bytes(path, b"content")
            assert os.stat(path).st_mode == kind
    assert names(tmp_path) == ["folder", "link", "pipe", "socket"]
    assert check_target(tmp_path / "absent") == tmp_path / "absent"


# --- other writers


def test_what_has_no_folder_is_told_by_the_names_of_the_user(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "name")
    with pytest.raises(FileNotFoundError) as caught:
        write_bytes(tmp_path / "link", b"x")
    assert caught.value.filename == str(tmp_path / "nowhere")
    # A pipe under a name of the system's, as /dev/stdout is: the one it leads to is nowhere.
    reading, writing = os.pipe()
    with pytest.raises(FileExistsError, match="expected a regular file or none"):
        check_target(f"/proc/self/fd/{writing}")
    os.close(reading)
    os.close(writing)


def test_files_that_others_have_put_in_the_way_are_left_alone(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    for name in (f".model.pth.{os.getpid()}.tmp", LEFT, f".sparseinfer-{'f' * 32}.tmp"):
        (tmp_path / name).symlink_to(victim)
    before = names(tmp_path)
    write_bytes(tmp_path / "model.pth", b"content")
    assert victim.read_text() == "whole"
    assert names(tmp_path) == sorted([*before, "model.pth"])


def test_threads_that_write_one_path_leave_one_of_their_contents(tmp_path):
    target, contents = tmp_path / "file", [bytes([index]) * 50_000 for index in range(4)]
    write_bytes(target, contents[0])
    stop, seen, errors = threading.Event(), set(), []

    def write(content):
        while not stop.is_set():
            try:
                write_bytes(target, content)
            except OSError as error:
                errors.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    for _ in range(300):
        seen.add(target.read_bytes())
    stop.set()
    for writer in writers:
        writer.join()
    assert not errors and seen <= set(contents) and names(tmp_path) == ["file"]


def test_writers_of_one_new_folder_do_not_hinder_each_other(tmp_path):
    with staged_folder(tmp_path / "folder") as slow:
        write_text(slow / "a", "slow")
        with staged_folder(tmp_path / "folder") as fast:
            for name in "ab":
                write_text(fast / name, "fast")
        assert names(tmp_path / "folder") == ["a", "b"]
    assert (tmp_path / "folder" / "a").read_text() == "slow"
    assert (tmp_path / "folder" / "b").read_text() == "fast"
    assert names(tmp_path) == ["folder"]


def killed(script):
    """Run a script that ends by SIGKILL."""
    text = textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_what_a_crash_left_is_removed_at_the_next_write(tmp_path):
    killed(f"""
        import os, signal
        from pathlib import Path
        from sparseinfer.files import staged
        with staged([Path({str(tmp_path)!r}, "file")]) as (unfinished,):
            unfinished.write_text("half of")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    (left,) = names(tmp_path)
    assert left.startswith(".sparseinfer-") and left.endswith(".tmp")
    write_text(tmp_path / "other", "content")
    assert names(tmp_path) == ["other"]


def test_what_a_writer_still_writes_is_not_removed(tmp_path):
    with staged([tmp_path / "first"]) as (unfinished,):
        write_text(tmp_path / "second", "second")
        sweep(tmp_path)
        unfinished.write_text("first")
    assert names(tmp_path) == ["first", "second"] and (tmp_path / "first").read_text() == "first"


def test_only_folders_of_this_module_are_removed(tmp_path):
    (tmp_path / LEFT).mkdir()
    (tmp_path / ".sparseinfer-notes.tmp").mkdir()
    (tmp_path / f".sparseinfer-{'1' * 32}.tmp").write_text("a file")
    write_text(tmp_path / "file", "content")
    assert LEFT not in names(tmp_path) and len(names(tmp_path)) == 3


def test_a_file_system_without_locks_is_written_and_never_swept(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    (tmp_path / LEFT).mkdir()
    write_text(tmp_path / "file", "content")
    assert names(tmp_path) == [LEFT, "file"]


# --- several files


def test_a_rename_that_fails_puts_the_others_back(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a", "new", "c")]
    paths[0].write_text("before")
    rename = os.replace

    def failing(source, target):
        if os.fspath(target) == os.fspath(paths[2]):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises(OSError, match="No space left"), staged(paths) as unfinished:
        for path in unfinished:
            path.write_text("after")
    assert names(tmp_path) == ["a"] and paths[0].read_text() == "before"


def sharded(folder):
    folder.mkdir()
    for name in ("one", "two"):
        state = {f"{name}.weight": torch.randn(4, 4)}
        torch.save(state, folder / f"{name}.bin")
    index = {"weight_map": {"one.weight": "one.bin", "two.weight": "two.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("format", ["dense", "sparse"])
def test_a_folder_of_shards_appears_whole_or_not_at_all(tmp_path, monkeypatch, format):
    sharded(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    save, calls = torch.save, []

    def full_disk(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2 or format == "sparse":
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        patched.setattr("safetensors.torch.save_file", full_disk)
        arguments = (tmp_path / "model", Recipe(amount=0.5))
        with pytest.raises(OSError, match="No space left"):
            prune_checkpoint(*arguments, tmp_path / "out", format=format)
        assert names(tmp_path) == ["model"]
        if format == "dense":
            calls.clear()
            with pytest.raises(OSError, match="No space left"):
                prune_checkpoint(*arguments, in_place=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    prune_checkpoint(tmp_path / "model", Recipe(amount=0.5), tmp_path / "out", format=format)
    assert "tokenizer.json" in names(tmp_path / "out")
    assert load_sparse(tmp_path / "out").keys() == {"one.weight", "two.weight"}


def test_what_a_crash_left_in_a_folder_does_not_count_as_content(tmp_path):
    sharded(tmp_path / "model")
    (tmp_path / "out" / LEFT).mkdir(parents=True)
    prune_checkpoint(tmp_path / "model", Recipe(amount=0.5), tmp_path / "out")
    assert load_sparse(tmp_path / "out").keys() == {"one.weight", "two.weight"}


# --- the writers of the package


@pytest.mark.parametrize("writer", ["report", "calibration", "sensitivity", "prune sensitivity"])
def test_every_writer_refuses_devices_and_leaves_nothing(tmp_path, writer):
    from sparseinfer.prune.sensitivity import Sensitivity as Accuracies
    from sparseinfer.timing import builtin_rates, rates

    write = {
        "report": lambda path: Report(layers=[]).to_json(path),
        "calibration": lambda path: calibration.save(path, rates.parse(builtin_rates.MODEL), {}),
        "sensitivity": lambda path: WeightErrors([0.5], {"fc": [0.1]}).plot(path),
        "prune sensitivity": lambda path: Accuracies(1.0, [0.5], {"a": [0.9]}).plot(path),
    }[writer]
    (tmp_path / "pipe.png").symlink_to("/dev/null")
    with pytest.raises(OSError, match="expected a regular file"):
        write(tmp_path / "pipe.png")
    write(tmp_path / "out.png")
    assert names(tmp_path) == ["out.png", "pipe.png"]


# --- who writes


STAGED = {
    "checkpoints/checkpoint.py": {"write_text"},
    "checkpoints/sparse.py": {"write_text"},
    "checkpoints/write.py": {"open"},
    "commands/run.py": {"open", "save"},
    "demo/__init__.py": {"write_bytes"},
    "export/c/folder.py": {"write_bytes"},
    "files.py": {"write_bytes", "replace"},
}
"""What writes into the stage that `sparseinfer.files` gives it or into memory, and it itself."""

EXCHANGED = {
    "networks/measure.py": {"save"},
    "networks/worker.py": {"save"},
    "peers/engines/deepsparse_cpu.py": {"write_bytes"},
    "peers/engines/mnn_cpu.py": {"write_bytes"},
    "peers/measure.py": {"save"},
    "peers/worker.py": {"save"},
    "sizes.py": {"write_bytes"},
}
"""What hands arrays, models and sources to another process in a folder that goes with the run."""

OWNERS = ("np", "os")


def writers(source):
    """Names of the calls that write a file by themselves; figures are saved to memory."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else node.func.id
        owner = node.func.value if method else None
        if method and name in ("write_text", "write_bytes", "mkstemp"):
            yield name
        elif isinstance(owner, ast.Name) and owner.id in OWNERS and name in ("replace", "save"):
            yield name
        elif name == "open":
            texts = [str(own.value) for own in node.args if isinstance(own, ast.Constant)]
            if any(re.fullmatch("[rbt]*[wxa+][bt+]*", text) for text in texts):
                yield name


@pytest.mark.parametrize(("folder", "known"), [("sparseinfer", STAGED), ("benchmarks", EXCHANGED)])
def test_every_file_is_written_whole(folder, known):
    root = Path(__file__).parents[1] / folder
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith("tests/") and (own := set(writers(path.read_text("utf-8")))):
            found[name] = own
    assert found == known, "write it by sparseinfer.files"


def test_a_writer_is_seen():
    seen = (
        "open(p, 'w')", "p.open('wb')", "open(p, mode, 'a')", "p.write_text(t)",
        "p.write_bytes(b)", "os.replace(a, b)", "np.save(p, a)", "tempfile.mkstemp()",
    )  # fmt: skip
    assert all(list(writers(line)) for line in seen)
    assert not [*writers("open(p)"), *writers("p.open('rb')"), *writers("replace(a, b=1)")]
    assert not list(writers("write_text(p, t); text.replace('a', 'w')"))
