"""Files that appear whole or not at all: every writer of the package goes through this one.

Work in progress lies in a folder beside the target, `.sparseinfer-<random>.tmp`, which is the
writer's alone: nobody can guess its name, and nobody else may look into it. Its writer holds a lock
on it (flock), so what a crash left is known by its free lock, and removed at a later write into the
same folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

__all__ = [
    "check_folder",
    "check_target",
    "staged",
    "staged_folder",
    "sweep",
    "write_bytes",
    "write_text",
]

_STAGE = re.compile(r"\.sparseinfer-[0-9a-f]{32}\.tmp")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole, in place of any that is there; through a link, to what it names.

    Raises:
        OSError: the file cannot be written, or something else than a file is there; what was there
            is then as it was.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "name")
        >>> write_bytes(path, b"content")
        >>> path.read_bytes()
        b'content'
    """
    with staged([Path(path)]) as (unfinished,):
        unfinished.write_bytes(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of UTF-8 text whole, see `write_bytes`.

    Raises:
        OSError: as `write_bytes`.
    """
    write_bytes(path, text.encode("utf-8"))


def check_target(path: str | os.PathLike[str]) -> Path:
    """Where a file of this name is written: through links, at what they name.

    Raises:
        OSError: a folder, a device, a pipe or a socket is there, none of which is ever replaced.

    Example:
        >>> check_target("/")
        Traceback (most recent call last):
        ...
        IsADirectoryError: [Errno 21] expected a file or none, got a folder; try a name in it: '/'
    """
    target = Path(os.path.realpath(path))
    try:
        # Of the name itself: what /dev/stdout leads to may have none.
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target
    if stat.S_ISDIR(mode):
        text = "expected a file or none, got a folder; try a name in it"
        raise IsADirectoryError(errno.EISDIR, text, os.fspath(path))
    if not stat.S_ISREG(mode):
        text = "expected a regular file or none, got something else; try another name"
        raise FileExistsError(errno.EEXIST, text, os.fspath(path))
    return target


@contextmanager
def staged(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Give a path to write for each target; all are renamed, in order, once all are written.

    Until then, and if anything fails, the targets are as they were. The paths to write are there,
    empty. A target that is a link stays one, and what it names is written; one that exists passes
    on its permissions.

    Raises:
        OSError: a file cannot be written or renamed; see `check_target`.
    """
    real = [check_target(target) for target in targets]
    with ExitStack() as stack:
        folders = dict.fromkeys(target.parent for target in real)
        stages = {folder: stack.enter_context(_stage(folder)) for folder in folders}
        unfinished = [stages[target.parent] / "new" / target.name for target in real]
        for path in unfinished:
            os.close(os.open(path, _NEW_FILE, 0o666))
        with ExitStack() as names:
            for path, target in zip(unfinished, targets, strict=True):
                names.enter_context(_named(path, target))
            yield unfinished
        _commit(list(zip(unfinished, real, strict=True)), stages)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write files into; a new one is renamed to `folder` once all are written.

    Where `folder` is there already, its files are replaced by those of the same names; a failure
    leaves them as they were, and only a crash among the renames, one a file and in the order of
    their names, can leave some of either.

    Raises:
        OSError: a file cannot be written or renamed.
    """
    folder = Path(os.path.realpath(folder))
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _stage(folder.parent) as stage:
            unfinished = stage / "folder"
            unfinished.mkdir()
            with _named(unfinished, folder):
                yield unfinished
            for path in unfinished.iterdir():
                _make_durable(path)
            try:
                os.rename(unfinished, folder)
            except OSError:
                # Another writer was faster.
                if not folder.is_dir():
                    raise
                files = sorted(unfinished.iterdir())
                _commit([(path, check_target(folder / path.name)) for path in files], {})
            _make_durable(folder.parent)
        return
    with _stage(folder) as stage:
        with _named(stage / "new", folder):
            yield stage / "new"
        files = sorted((stage / "new").iterdir())
        pairs = [(path, check_target(folder / path.name)) for path in files]
        _commit(pairs, {folder: stage})


def check_folder(folder: Path) -> None:
    """Create a folder and prove that files can be written there, before minutes of work.

    Raises:
        OSError: they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _stage(folder):
        pass


def sweep(folder: Path) -> None:
    """Remove what writers that no longer run have left in a folder.

    Example:
        >>> sweep(Path("nowhere"))
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if _STAGE.fullmatch(entry.name)]
    except OSError:
        return
    for entry in found:
        with suppress(OSError):
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            handle = _lock(Path(entry.path))
            if handle is not None:
                shutil.rmtree(entry.path, ignore_errors=True)
                os.close(handle)


@contextmanager
def _stage(folder: Path) -> Iterator[Path]:
    """A folder of this writer's own in another: `new` for its files, `old` for replaced ones."""
    sweep(folder)
    while True:
        stage = folder / f".sparseinfer-{secrets.token_hex(16)}.tmp"
        try:
            stage.mkdir(mode=0o700)
        except OSError as error:
            error.filename = os.fspath(folder)
            raise
        try:
            handle = _lock(stage)
        except OSError:
            # A file system without locks: nobody can sweep there either.
            handle = -1
        if handle is not None:
            break
        # Between the two lines above another writer may sweep it away.
    try:
        (stage / "new").mkdir()
        (stage / "old").mkdir()
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


@contextmanager
def _named(written: Path, given: Path) -> Iterator[None]:
    """Let errors tell the name that was given, not the one that is written for the time being."""
    try:
        yield
    except OSError as error:
        path = os.fspath(written)
        if isinstance(error.filename, str) and error.filename.startswith(path):
            error.filename = os.fspath(given) + error.filename.removeprefix(path)
        raise


def _lock(stage: Path) -> int | None:
    """Lock a stage: the handle that holds the lock, None where another holds it or it is gone.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        handle = os.open(stage, _DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), stage.stat(follow_symlinks=False)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _commit(pairs: Sequence[tuple[Path, Path]], stages: dict[Path, Path]) -> None:
    """Rename each source to its target; where one fails, put back what those before it replaced."""
    for source, target in pairs:
        _make_durable(source)
        _take_over(source, target)
    done: list[tuple[Path, Path | None]] = []
    try:
        for source, target in pairs:
            before = None
            if len(pairs) > 1 and target.parent in stages:
                before = stages[target.parent] / "old" / target.name
                with suppress(OSError):
                    os.link(target, before)
            there = target.exists()
            os.replace(source, target)
            if not there or (before is not None and before.exists()):
                done.append((target, before if there else None))
    except BaseException:
        for target, before in reversed(done):
            with suppress(OSError):
                target.unlink() if before is None else os.replace(before, target)
        raise
    for folder in dict.fromkeys(target.parent for _, target in pairs):
        _make_durable(folder)


def _take_over(source: Path, target: Path) -> None:
    """Give a file the permissions of the one that it replaces, or those of any new file."""
    try:
        facts = target.stat()
    except FileNotFoundError:
        # safetensors makes files that only their owner can read; the umask is known by a new file.
        usual = source.with_name(f".{secrets.token_hex(16)}")
        handle = os.open(usual, _NEW_FILE, 0o666)
        try:
            mode = os.fstat(handle).st_mode
        finally:
            os.close(handle)
            usual.unlink()
    else:
        mode = facts.st_mode
        with suppress(PermissionError):
            os.chown(source, facts.st_uid, facts.st_gid)
    source.chmod(mode & 0o777)


def _make_durable(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot do this to a folder.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)
