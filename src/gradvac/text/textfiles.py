"""Text files as lines of limited length: decompression, decoding, checks of control characters."""

from __future__ import annotations

import bz2
import codecs
import difflib
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import BinaryIO, cast

from gradvac.errors import CorpusError, RunError
from gradvac.reading import regular

LINE_LIMIT = 100_000
"""Longest line in bytes. Chosen here: about 15,000 words, far above any sentence or paragraph."""

_PIECE = 2**18  # bytes

BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""Exceptions from reading a file that cannot be read or decompressed."""

_MAGIC = {
    ".gz": re.compile(rb"\x1f\x8b\x08"),
    ".xz": re.compile(rb"\xfd7zXZ\x00"),
    ".bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
}
_MAGIC_BYTES = 10
# Chosen here: no text has a million empty lines in a row, but 100 kB of gzip can have 100 million.
_BLANK_LINES = 1_000_000
COMPRESSED = frozenset(_MAGIC)
"""Suffixes of compressed files."""

# C0 except tab and line ends, DEL, C1; then surrogates, which JSON can write and UTF-8 cannot.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|[\ud800-\udfff]")


class Fault(Exception):
    """Why a row cannot be used, and where; the account counts it and applies its policy.

    `skip` marks rows left out by design (a fuzzy translation), which never end a reading.
    """

    def __init__(
        self, reason: str, where: str, detail: str = "", *, count: int = 1, skip: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where
        self.detail = detail
        self.count = count
        self.skip = skip


def raw_lines(path: Path, limit: int = LINE_LIMIT) -> Iterator[bytes | None]:
    r"""Lines of a file without their end, `None` for a line of more than `limit` bytes.

    Only ``\n`` and ``\r\n`` end a line. A byte order mark of UTF-8 is removed. `.gz`, `.xz` and
    `.bz2` are decompressed while they are read; at most `limit` and 256 KiB are in memory.

    Raises:
        CorpusError: a file that is missing, empty, UTF-16, or compressed and damaged or truncated,
            or has a million empty lines in a row.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            start = cast(BufferedReader, file).peek(3)
            if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise CorpusError(f"{path}:1: this is UTF-16 text; convert it to UTF-8 first")
            if start.startswith(codecs.BOM_UTF8):
                file.read(len(codecs.BOM_UTF8))
            blank = 0
            for lines in _pieces(file, limit):
                text = any(line is None or line.strip() for line in lines)
                blank = 0 if text else blank + len(lines)
                if blank > _BLANK_LINES:
                    raise CorpusError(
                        f"{path}:{number + 1}: more than {_BLANK_LINES:,} empty lines in a row: "
                        "this is no text"
                    )
                yield from lines
                number += len(lines)
    except BROKEN as error:
        raise CorpusError(f"{path}:{number + 1}: cannot be read further: {error}") from error
    if number == 0:
        raise CorpusError(f"{path}:1: the file is empty")


def _pieces(file: BinaryIO, limit: int) -> Iterator[list[bytes | None]]:
    """The lines of a file, in groups of those that one read returns."""
    start, too_long = b"", False  # of the unfinished line
    # read1: data before a damaged part is returned before the error
    while data := cast(BufferedReader, file).read1(_PIECE):
        lines = data.split(b"\n")
        end = lines.pop()
        if lines:
            lines[0] = start + lines[0]
            if b"\r" in data or start.endswith(b"\r"):
                lines = [line.removesuffix(b"\r") for line in lines]
            found = [line if len(line) <= limit else None for line in lines]
            if too_long:
                found[0] = None
            start, too_long = b"", False
            yield found
        start += end
        if len(start) > limit + 1:  # one of them may be a carriage return
            start, too_long = b"", True
    if start or too_long:
        yield [None if too_long or len(start) > limit else start]


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole file, decompressed.

    Raises:
        CorpusError: as `raw_lines`, or the file has more than `limit` bytes.
    """
    try:
        with open_bytes(path) as file:
            data = file.read(limit + 1)
    except BROKEN as error:
        raise CorpusError(f"{path}: cannot be read: {error}") from error
    if not data:
        raise CorpusError(f"{path}: the file is empty")
    if len(data) > limit:
        raise CorpusError(f"{path}: byte {limit}: the file is larger than {limit:,} bytes")
    return data


def decode(line: bytes | None, where: str, encoding: str = "utf-8") -> str:
    """The text of a line, or a Fault: too long, not in this encoding, control characters."""
    if line is None:
        raise Fault("line too long", where)
    try:
        text = line.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8" else encoding
        raise Fault(
            f"invalid {name}", where, f"byte {line[error.start]:#04x} at column {error.start + 1}"
        ) from error
    if "\r" in text:
        raise Fault("control character", where, f"'\\r' at column {text.index(chr(13)) + 1}")
    return check_text(text, where)


def check_text(text: str, where: str) -> str:
    """`text` unchanged, or a Fault that names its first control character or surrogate."""
    found = _FORBIDDEN.search(text)
    if found is None:
        return text
    reason = "not a Unicode character" if found[0] >= "\ud800" else "control character"
    raise Fault(reason, where, f"{found[0]!a} at column {found.start() + 1}")


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, decompressed if its first bytes show a compression.

    Raises:
        CorpusError: the file cannot be opened, or is not compressed as its suffix says.
    """
    if not path.exists():
        raise CorpusError(f"{path}: no such file{_nearest_file(path)}")
    if path.is_dir():
        raise CorpusError(f"{path}: is a directory, not a file")
    try:
        regular(path)
    except RunError as e:
        raise CorpusError(str(e)) from e
    with path.open("rb") as raw:
        start = raw.peek(_MAGIC_BYTES)
        found = [suffix for suffix, magic in _MAGIC.items() if magic.match(start)]
        if not found and start and path.suffix in _MAGIC:
            raise CorpusError(f"{path}:1: ends in {path.suffix} but is not compressed that way")
        if not found:
            yield raw
            return
        if found[0] == ".gz":  # it checks the data after a stream itself
            with gzip.open(raw) as file:
                yield cast(BinaryIO, file)
        else:
            yield cast(BinaryIO, BufferedReader(_Streams(raw, found[0]), _PIECE))


class _Streams(RawIOBase):
    """The data of all streams of a bzip2 or xz file, one after another, as parallel compressors
    write them.

    Python's own readers treat a later stream with a damaged start, or any other data after a
    stream, as the end of the file. Here only zero bytes may follow (padding of xz).
    """

    def __init__(self, file: BinaryIO, suffix: str) -> None:
        self._file, self._suffix = file, suffix
        self._waiting = b""  # compressed data not yet given to a decompressor
        self._stream = self._new()

    def _new(self) -> bz2.BZ2Decompressor | lzma.LZMADecompressor:
        if self._suffix == ".bz2":
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while True:
            if self._stream.eof and not self._next():
                return 0
            if self._stream.needs_input and not self._waiting:
                self._waiting = self._file.read(_PIECE)
                if not self._waiting:
                    raise EOFError("the compressed file ends within a stream")
            data = self._stream.decompress(self._waiting, len(buffer))
            self._waiting = b""
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _next(self) -> bool:
        """Start the next stream after the end of one; False at the end of the file."""
        rest = self._stream.unused_data or self._file.read(_PIECE)
        while self._suffix == ".xz" and rest and not (rest := rest.lstrip(b"\0")):
            rest = self._file.read(_PIECE)
        if not rest:
            return False
        rest += self._file.read(_MAGIC_BYTES)
        if not _MAGIC[self._suffix].match(rest):
            raise OSError(
                f"after the end of a stream come bytes that are no {self._suffix[1:]} stream: "
                f"{rest[:20]!r}"
            )
        self._stream, self._waiting = self._new(), rest
        return True


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir()]
    found = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
