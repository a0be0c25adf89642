"""Tables and line-aligned files as blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from gradvac.errors import CorpusError
from gradvac.text.blocks import LINES, Block, Row, block_of, row_of
from gradvac.text.quoted import goes_on
from gradvac.text.textfiles import Fault, decode, raw_lines

# A control character replaces a line over the limit: the line is read alone, and found too long.
_TOO_LONG = b"\0"


def tables(
    path: Path, lines: Iterator[bytes | None], columns: dict[str, int], width: int, first: int
) -> Iterator[Block]:
    """The remaining ``lines`` of a table in blocks; the next line has number ``first``."""
    while True:
        found, error = _some(lines)
        if found:
            yield table(path, found, columns, width, first)
        if error is not None:
            raise error
        if len(found) < LINES:
            return
        first += len(found)


def table(
    path: Path, lines: Sequence[bytes | None], columns: dict[str, int], width: int, first: int
) -> Block:
    """Rows of a table of ``width`` columns; ``columns`` gives the column of each language."""

    def parse(i: int) -> Row:
        where = f"{path}:{first + i}"
        cells = decode(lines[i], where).split("\t")
        if len(cells) != width:
            if cells == [""]:
                raise Fault("empty line", where)
            if goes_on(lines, i, width):
                raise CorpusError(
                    f"{where}: a cell in quotation marks goes on over the end of a line; read such "
                    "a file with quoted: true (in an import, --quoted)"
                )
            raise Fault("wrong number of columns", where, f"{len(cells)} instead of {width}")
        return row_of({code: cells[column] for code, column in columns.items()}, where)

    data = [_TOO_LONG if line is None else line for line in lines]
    return block_of(data, columns, width, f"{path}:", first, parse)


def aligned_files(paths: Mapping[str, Path], limit: int) -> Iterator[Fault | Block]:
    """Rows of files of one language each; lines with the same number belong together."""
    lines = {code: raw_lines(path, limit) for code, path in paths.items()}
    done, count = 0, LINES
    some: dict[str, tuple[list[bytes | None], CorpusError | None]] = {}
    while count == LINES:
        some = {code: _some(rest) for code, rest in lines.items()}
        count = min(len(found) for found, _ in some.values())
        if count:
            yield _aligned(paths, {c: found[:count] for c, (found, _) in some.items()}, done + 1)
        done += count
    for shortest in (True, False):  # in the order of reading line by line
        for found, error in some.values():
            if error is not None and (len(found) == count) is shortest:
                raise error
    if any(len(found) > count for found, _ in some.values()):
        counts = {
            code: done - count + len(found) + sum(1 for _ in lines[code])
            for code, (found, _) in some.items()
        }
        longest = max(paths, key=lambda code: counts[code])
        told = ", ".join(f"{paths[code]} has {total}" for code, total in counts.items())
        where = f"{paths[longest]}:{done + 1}"
        yield Fault("unequal numbers of lines", where, told, count=counts[longest] - done)


def _aligned(
    paths: Mapping[str, Path], lines: Mapping[str, Sequence[bytes | None]], first: int
) -> Block:
    """Rows of lines of one language each; a tab within one is white space."""
    place = f"{next(iter(paths.values()))}:"

    def parse(i: int) -> Row:
        texts = {c: decode(own[i], f"{paths[c]}:{first + i}") for c, own in lines.items()}
        return row_of(texts, f"{place}{first + i}")

    rows = zip(*lines.values(), strict=True)
    data = [b"\t".join([_TOO_LONG if cell is None else cell for cell in row]) for row in rows]
    columns = {code: n for n, code in enumerate(paths)}
    return block_of(data, columns, len(paths), place, first, parse)


def _some(lines: Iterator[bytes | None]) -> tuple[list[bytes | None], CorpusError | None]:
    """The next `LINES` lines, fewer at the end or before an error, which is returned."""
    found: list[bytes | None] = []
    try:
        found.extend(islice(lines, LINES))  # if the iterator raises, earlier lines are kept
    except CorpusError as error:
        return found, error
    return found, None
