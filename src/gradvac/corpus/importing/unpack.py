"""Archives, unpacked file by file into a folder; what is broken or dangerous is named."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from gradvac.errors import CorpusError

_BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
_TAR = (".tar", ".tgz", ".tbz2", ".txz")


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, or says so by its name."""
    return path.suffix == ".zip" or path.suffix in _TAR or path.with_suffix("").suffix == ".tar"


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of a zip or tar archive, compressed or not, into `folder`.

    Raises:
        CorpusError: the archive is truncated or broken, or a member would leave the folder.
    """
    done = "its beginning"
    with _named(archive) as told:
        for name, stream in _members(archive):
            told[0] = f"after {done}"
            parts = PurePosixPath(name.replace("\\", "/")).parts
            if ".." in parts or name.startswith("/"):
                raise CorpusError(f"{archive}: member {name!r} points outside of the archive")
            file = folder.joinpath(*parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                shutil.copyfileobj(stream, out)
            done = name


@contextmanager
def _named(archive: Path) -> Iterator[list[str]]:
    told = ["at its beginning"]
    try:
        yield told
    except _BROKEN as error:
        raise CorpusError(
            f"{archive}: truncated or broken archive, {told[0]}: {error or type(error).__name__}"
        ) from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if not archive.exists():
        raise CorpusError(f"{archive}: no such file")
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    with zipped.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield member.name, stream
