"""The `sparseinfer` command. Work is imported where it is needed, so that help is instant."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparseinfer.commands import bench, export, inspect, prune, run, sensitivity
from sparseinfer.commands.output import (
    MachineError,
    UserError,
    check_output,
    console,
    of_file,
    printable,
)
from sparseinfer.timing.machine import package_version

__all__ = ["app", "main"]

USER_ERROR = 2
INTERRUPTED = 130

app = typer.Typer(
    name="sparseinfer",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Run pruned PyTorch models faster than dense, and learn for every layer why or why not.",
    epilog="Examples:\n\nsparseinfer doctor\n\nsparseinfer demo\n\n"
    "sparseinfer prune model.pth --amount 0.9 -o pruned.pth\n\nsparseinfer demo --help",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            # It alone, for the package imports torch.
            from sparseinfer.native import version as native_version

            found = native_version()
        except ImportError:
            found = package_version("sparseinfer")
        typer.echo(f"sparseinfer {found}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Examples:\n\nsparseinfer demo\n\nsparseinfer demo --sparsity 0.8 --threads 1\n\n"
    "sparseinfer demo --data mnist/ --epochs 4 --train-images 60000",
)
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with IDX files as MNIST and Fashion-MNIST have them, gzipped or not. "
            "Without it: Debian's dataset-fashion-mnist if installed, else scikit-learn's digits.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Folder for demo.json, demo.png and the two saved models."
        ),
    ] = Path("sparseinfer-demo"),
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Epochs of dense training. (default: 3, or 6 for small data)"
        ),
    ] = None,
    prune_epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Epochs of pruning. (default: as --epochs)"),
    ] = None,
    train_images: Annotated[
        int | None,
        typer.Option(min=100, metavar="N", help="Images to train on. (default: at most 20000)"),
    ] = None,
    sparsity: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.99, metavar="FRACTION", help="Fraction of the weights to prune."
        ),
    ] = 0.9,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of everything random.")
    ] = 0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, metavar="N", help="Threads. (default: torch's number)"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files of other origin in FOLDER.")
    ] = False,
) -> None:
    """Train a small network, prune it, convert it, and see what that gains on this machine."""
    try:
        from sparseinfer import demo as work
    except ImportError as error:
        raise UserError(
            f"the demo needs a package that cannot be imported: {error}; "
            "try pip install 'sparseinfer[demo]', or sparseinfer doctor"
        ) from error
    _check_demo_folder(out, force)
    options = work.Options(
        data=data,
        out=out,
        epochs=epochs,
        prune_epochs=prune_epochs,
        train_images=train_images,
        sparsity=sparsity,
        seed=seed,
        threads=threads,
    )
    try:
        work.run(options, console())
    except work.DataError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise of_file(error) from error


def _check_demo_folder(folder: Path, force: bool) -> None:
    # An earlier demo's files are replaced, nobody else's.
    if force or (folder / "demo.json").exists():
        return
    for name in ("demo.png", "pruned.pt", "converted.pt"):
        check_output(folder / name, force)


@app.command(epilog="Examples:\n\nsparseinfer doctor\n\nsparseinfer doctor --json > doctor.json")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a bug report.")] = False,
) -> None:
    """Tell what is installed, which kernels run on this machine, and why the others do not.

    The exit code is 0 when linear and convolution layers can run sparse here, else 1.
    """
    from sparseinfer.commands import doctor as work

    diagnosis = work.diagnose()
    if as_json:
        typer.echo(json.dumps(diagnosis, indent=1))
    else:
        work.show(diagnosis, console())
    raise typer.Exit(0 if work.healthy(diagnosis) else 1)


app.command(epilog=inspect.EPILOG)(inspect.inspect)
app.command(epilog=prune.EPILOG)(prune.prune)
app.command(epilog=sensitivity.EPILOG)(sensitivity.sensitivity)
app.command(epilog=export.EPILOG)(export.export)
app.command(epilog=run.EPILOG)(run.run)
app.command(epilog=bench.EPILOG)(bench.bench)

# click's own: typer brings its copy of click in newer versions, and uses the package in older ones.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit.

    The codes are 0 for success, 1 where the machine refuses or the doctor found trouble, 2 for an
    error of the user's or of a file that was given, 130 for an interruption. An error is one line.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name that the terminal's encoding lacks is spelled out.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except UserError as error:
        code = _complain(str(error), error.code)
    except _USAGE_ERROR as error:
        # Without a message it is the help, which has been printed.
        message = error.format_message().rstrip(".")
        code = _complain(f"{message}; try --help", USER_ERROR) if message else USER_ERROR
    # typer and rich turn a reader that has gone into an exit of their own.
    except (BrokenPipeError, SystemExit):
        code = _complain("standard output: closed before all was written", MachineError.code)
        # Python would complain again when it flushes at the end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        shown = of_file(error)
        code = _complain(str(shown), shown.code)
    except MemoryError:
        code = _complain("out of memory; try a machine with more", MachineError.code)
    # Whatever else there is, a user is told in one line.
    except Exception as error:
        lines = str(error).splitlines() or [""]
        text = f"{type(error).__name__}: {lines[0][:300]}"
        code = _complain(f"{text}; try sparseinfer doctor, or tell its makers", MachineError.code)
    # Newer versions of typer turn an interruption into this exit code themselves.
    if code == INTERRUPTED:
        _complain("interrupted", code)
    sys.exit(code or 0)


def _complain(message: str, code: int) -> int:
    line = printable(" ".join(message.split()))
    with contextlib.suppress(OSError):
        print(f"sparseinfer: error: {line}", file=sys.stderr)
    return code
