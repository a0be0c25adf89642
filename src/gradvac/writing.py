"""Files and folders written whole; :mod:`gradvac.reading` reads them.

Whoever reads a file finds the old one or the new one, never a part: what is written lies in a
folder beside its place until it is complete. A process that is killed leaves that folder; the next
one that writes there removes it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from gradvac.tables import csv_text

_UNFINISHED, _LOCK = ".gradvac-", ".lock"
_NOT_FOR_FOLDERS = {errno.EINVAL, errno.ENOTSUP}  # of fsync, on network file systems


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write the file, or new folder, that becomes ``path`` when the block ends.

    After an exception, or a kill, ``path`` is what it was. OSError names ``path``, not the place
    beside it. A file that other folders hold too, as a hard link, stays theirs as it was; of a
    symbolic link the file behind it is replaced. A pipe or device is written to as it is.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    target = path.resolve() if path.is_symlink() else path
    try:
        with _beside(target) as folder:
            new = folder / target.name
            yield new
            _whole_to_disk(new)
            new.replace(target)
    except OSError as e:
        if e.errno is None or (e.filename is not None and _UNFINISHED not in str(e.filename)):
            raise
        raise OSError(e.errno, e.strerror, str(path)) from e


def move(file: Path, place: Path) -> None:
    """Rename a file, or copy it whole where ``place`` is on another file system."""
    try:
        file.replace(place)
    except OSError as e:
        if e.errno != errno.EXDEV:
            raise
        with replacing(place) as new:
            shutil.copy(file, new)
        file.unlink()


def link(source: str | Path, target: str | Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy of it; one that was there stays whole.

    Who shares a file never writes into it: `replacing` leaves the others what they have.
    """
    with replacing(Path(target)) as new:
        try:
            os.link(source, new)
        except OSError:  # another file system, or one without links
            shutil.copy(source, new)


def share(source: Path, target: Path) -> None:
    """Let ``target`` hold what the folder ``source`` holds, as links where there are any."""
    unfinished = shutil.ignore_patterns(f"{_UNFINISHED}*")
    shutil.copytree(source, target, copy_function=link, ignore=unfinished, dirs_exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text whole; OSError names the file."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes whole; OSError names the file."""
    with replacing(path) as new:
        new.write_bytes(data)


def write_json(path: Path, tree: Any, indent: int | None = 1) -> None:
    """Write JSON whole; OSError names the file."""
    write_text(path, json.dumps(tree, indent=indent, ensure_ascii=False))


def write_csv(path: Path, lines: Iterable[Sequence[Any]], end: str = "\r\n") -> None:
    """Write a table whole, by default with the line ends of RFC 4180; OSError names the file."""
    write_text(path, csv_text(lines, end))


def to_disk(path: Path) -> None:
    """Wait until a file or folder would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if not (path.is_dir() and e.errno in _NOT_FOR_FOLDERS):
            raise OSError(e.errno, e.strerror, str(path)) from e
    finally:
        os.close(descriptor)


def _whole_to_disk(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            to_disk(file)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, locked while it is in use; those nobody uses are removed."""
    for left in target.parent.glob(f"{_UNFINISHED}*"):
        with suppress(OSError), _locked(left):  # of a link nothing is removed: see `rmtree`
            shutil.rmtree(left, ignore_errors=True)
    with ExitStack() as held:
        folder = None
        while folder is None:  # a new folder may be removed by another process before it is locked
            new = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=target.parent))
            held.callback(shutil.rmtree, new, ignore_errors=True)
            with suppress(FileNotFoundError, BlockingIOError):
                held.enter_context(_locked(new, needed=False))
                folder = new
        yield folder


@contextmanager
def _locked(folder: Path, needed: bool = True) -> Iterator[None]:
    """Hold the lock of an unfinished folder; OSError if another process has it or removed it.

    ``needed`` False goes on without, on a file system that has no locks: nobody removes it there.
    """
    # A stranger's folder in a place that all may write to: no link is followed, nothing emptied.
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if needed or isinstance(e, BlockingIOError):
                raise
        os.stat(folder / _LOCK)
        yield
    finally:
        os.close(lock)
