"""Reading files that may be damaged or have other contents: whole, or an error that names the file.

Every error is a RunError whose message begins with the file. Reading never blocks: a FIFO without a
writer, an endless device and a file that is far too long are rejected before they are read.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from gradvac.errors import RunError

LONGEST = 2**28
"""Largest text that is read whole, in bytes. Chosen here: far more than a run writes."""

LONGEST_LINE = 2**24
"""Bytes. A line of the Gram record with 500 tasks and 1,000 groups has a tenth of this."""
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
T = TypeVar("T")


def regular(path: Path, most: int | None = None) -> Path:
    """Return the path; RunError unless it is a regular file of at most ``most`` bytes."""
    try:
        found = path.stat()
    except (OSError, ValueError) as e:  # ValueError: a null character in the name
        raise RunError(f"{path}: cannot be read: {_reason(e)}") from e
    if not stat.S_ISREG(found.st_mode):
        what = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise RunError(f"{path}: is {what}, not a file")
    if most is not None and found.st_size > most:
        raise RunError(f"{path}: has {found.st_size:,} bytes; at most {most:,} are read")
    return path


def read_bytes(path: Path) -> bytes:
    """Read a file of at most `LONGEST` bytes."""
    try:
        return regular(path, LONGEST).read_bytes()
    except OSError as e:
        raise RunError(f"{path}: cannot be read: {_reason(e)}") from e


def read_text(path: Path) -> str:
    """Read a text in UTF-8 of at most `LONGEST` bytes."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as e:
        raise RunError(f"{path}: not UTF-8 at byte {e.start}") from e


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file of any size, in hexadecimal."""
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, shape: type[T] = dict[str, Any]) -> T:
    """Read JSON of a declared ``shape``, by default an object; the error names the place in it.

    ``shape`` is any type that pydantic knows: ``dict[str, int]``, a dataclass, a TypedDict.
    """
    return _parsed(read_bytes(path), shape, str(path))


def is_json(path: Path) -> bool:
    """Whether there is a file with one complete JSON object."""
    try:
        read_json(path)
    except RunError:
        return False
    return True


def read_lines(path: Path, shape: type[T] = dict[str, Any], growing: bool = False) -> Iterator[T]:
    r"""Read the lines of JSON of a file, each of ``shape``; only ``\n`` ends a line.

    ``growing``: a process may be writing the last line, or was killed while it did; the line is
    skipped if it has no end.
    """
    with regular(path).open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            if growing and not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                return
            yield _parsed(line, shape, f"{path}:{number}")


def _parsed(data: bytes, shape: type[T], where: str) -> T:
    from pydantic import ValidationError

    try:
        return _adapter(shape).validate_json(data, strict=True)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise RunError(f"{where}: {place + ': ' if place else ''}{first['msg']}") from e


@lru_cache
def _adapter(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def _reason(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
