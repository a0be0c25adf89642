"""SHA-256 sums of files, to find files that changed; `sha256sum -c` reads them too."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gradvac.errors import RunError
from gradvac.reading import read_text, sha256_of
from gradvac.writing import write_text

SUMS = "SHA256SUMS"


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Write the sums of files in a folder."""
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    write_text(folder / SUMS, "".join(lines))


def check_sums(folder: Path, names: Iterable[str], *, others: bool = False) -> None:
    """Compare files of a folder with their sums; ``others``: also all other files with a sum.

    Raises:
        FileNotFoundError: there are no sums.
        RunError: they cannot be read, or the named file is missing, changed or has no sum.
    """
    try:
        (folder / SUMS).stat()
    except FileNotFoundError:
        raise
    except OSError as e:
        raise RunError(f"{folder / SUMS}: cannot be read: {e.strerror}") from e
    lines = read_text(folder / SUMS).splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in dict.fromkeys([*names, *(sums if others else ())]):
        try:
            found = sha256_of(folder / name)
        except OSError as e:
            raise RunError(f"{folder / name}: not readable: {e.strerror}") from e
        if sums.get(name) != found:
            raise RunError(
                f"{folder / name}: damaged: its SHA-256 begins {found[:12]}, and {SUMS} says "
                f"{sums.get(name, 'nothing')[:12]}"
            )
