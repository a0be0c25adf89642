"""Unpacks archives file by file into a folder; damaged or dangerous ones are errors."""

from __future__ import annotations

import struct
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from gradvac.errors import CorpusError, RunError
from gradvac.reading import regular
from gradvac.text.textfiles import BROKEN, open_bytes

# What zipfile and tarfile raise on damaged, encrypted or unusual archives; found by fuzzing, the
# manuals list less.
DAMAGED = (
    *BROKEN, zipfile.BadZipFile, tarfile.TarError, struct.error, RuntimeError, ValueError,
    TypeError, LookupError, OverflowError,
)  # fmt: skip
# Text compresses to a tenth, tables of few words to a hundredth; an archive made to fill a disk
# holds ten thousand times its size. Chosen here.
_MOST_TIMES = 300
_ALWAYS = 2**26  # bytes
_TAR = (".tar", ".tgz", ".tbz2", ".txz")


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by content or by name."""
    return path.suffix == ".zip" or path.suffix in _TAR or path.with_suffix("").suffix == ".tar"


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of a zip or tar archive, compressed or not, into `folder`.

    Raises:
        CorpusError: the archive is truncated or damaged, a member's path leaves the folder, or the
            contents would fill the disk.
    """
    done = "its beginning"
    room = _MOST_TIMES * archive.stat().st_size + _ALWAYS if archive.exists() else 0
    with _named(archive) as told:
        for name, stream in _members(archive):
            told[0] = f"after {done}"
            parts = PurePosixPath(name.replace("\\", "/")).parts
            if ".." in parts or name.startswith("/"):
                raise CorpusError(f"{archive}: member {name!r} points outside of the archive")
            file = folder.joinpath(*parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                while block := stream.read(1 << 20):
                    room -= out.write(block)
                    if room < 0:
                        raise CorpusError(
                            f"{archive}: member {name!r}: all together unpack to more than "
                            f"{_MOST_TIMES} times the size of the archive"
                        )
            done = name


@contextmanager
def _named(archive: Path) -> Iterator[list[str]]:
    told = ["at its beginning"]
    try:
        yield told
    except DAMAGED as error:
        raise CorpusError(
            f"{archive}: truncated or broken archive, {told[0]}: {error or type(error).__name__}"
        ) from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if not archive.exists():
        raise CorpusError(f"{archive}: no such file")
    try:
        regular(archive)
    except RunError as e:
        raise CorpusError(str(e)) from e
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    with zipped.open(info) as stream:
                        yield info.filename, stream
        return
    # tarfile's own decompression stops at the end of the first stream.
    with open_bytes(archive) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield member.name, stream
