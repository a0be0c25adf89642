"""Reading a `.deb` in this process: ar, then a compressed tar; nothing is run or written.

Members are returned as bytes, so no path in a package ever names a file of ours.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from gradvac.corpus.importing.unpack import DAMAGED
from gradvac.errors import CorpusError

# The largest member with text is an archive of Firefox, 60 MB.
_LARGEST = 256 * 2**20
_HEADER = 60


def read_deb(deb: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Path (without `./`) and bytes of every wanted regular file of a package.

    Links, devices and files over 256 MiB are left out.

    Raises:
        CorpusError: not a package, a truncated one, or a compression that Python cannot read.
    """
    try:
        with deb.open("rb") as raw:
            name, data = _data_member(raw, deb)
            mode = "r|*" if name != "data.tar" else "r|"
            with tarfile.open(fileobj=cast(BinaryIO, data), mode=mode) as archive:
                for member in archive:
                    path = member.name.removeprefix("./")
                    if member.isfile() and member.size <= _LARGEST and wanted(path):
                        body = archive.extractfile(member)
                        assert body is not None
                        found = body.read()
                        if len(found) < member.size:
                            raise EOFError(f"{path} ends too soon")
                        yield path, found
            data.finish()
    except DAMAGED as error:
        raise CorpusError(f"{deb}: truncated or damaged: {error}") from error


class _Slice:
    """The bytes of one member of an ar archive, as a stream."""

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw, self._left = raw, size

    def read(self, count: int = -1) -> bytes:
        wanted = self._left if count < 0 else min(count, self._left)
        found = self._raw.read(wanted)
        if len(found) < wanted:
            raise EOFError(f"{self._left - len(found)} bytes are missing")
        self._left -= len(found)
        return found

    def finish(self) -> None:
        """Read to the end, so that a file truncated after its last member is noticed."""
        while self.read(1 << 20):
            pass


def _data_member(raw: BinaryIO, deb: Path) -> tuple[str, _Slice]:
    if raw.read(8) != b"!<arch>\n":
        raise CorpusError(f"{deb}: byte 0: not a Debian package, which starts with '!<arch>'")
    while True:
        at = raw.tell()
        header = raw.read(_HEADER)
        if len(header) < _HEADER or header[58:] != b"`\n":
            raise CorpusError(f"{deb}: byte {at}: truncated or damaged: no data.tar before here")
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        if re.fullmatch(rb"\d+ *", header[48:58]) is None:
            raise CorpusError(f"{deb}: byte {at}: damaged: {name!r} has no size")
        size = int(header[48:58])
        if name.startswith("data.tar"):
            if name.endswith(".zst"):
                raise CorpusError(
                    f"{deb}: {name} is compressed with zstd, which Python's tarfile does not read "
                    "here: use a release whose packages are compressed with xz or gzip"
                )
            return name, _Slice(raw, size)
        raw.seek(size + size % 2, 1)
