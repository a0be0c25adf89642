"""Tables with quoted cells, as spreadsheets write them (RFC 4180): CSV, and TSV of this kind.

A quoted cell may contain the separator, line ends, and doubled quotation marks.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gradvac.text.blocks import Row, row_of
from gradvac.text.textfiles import Fault, decode, raw_lines

# Maximum lines of a cell. Chosen here: a cell is a sentence, at most a paragraph.
_MOST = 50


def records(path: Path, separator: str, limit: int) -> Iterator[tuple[str, list[str]] | Fault]:
    """Place and cells of each record; the place is its first line."""
    waiting: list[str] = []
    start = ""
    fault: Fault | None = None
    for number, line in enumerate(raw_lines(path, limit), 1):
        start = start if waiting else f"{path}:{number}"
        try:
            waiting.append(decode(line, f"{path}:{number}"))
        except Fault as found:
            waiting.append((line or b"").decode("utf-8", "replace"))
            fault = fault or found
        text = "\n".join(waiting)
        if text.count('"') % 2 and len(waiting) < _MOST:
            continue
        yield fault or _record(text, start, separator)
        waiting, fault = [], None
    if waiting:
        yield Fault("a quotation mark that is not closed", start)


def _record(text: str, where: str, separator: str) -> tuple[str, list[str]] | Fault:
    try:
        (cells,) = csv.reader([text], delimiter=separator, strict=True)
    except (csv.Error, ValueError) as error:
        return Fault("a quotation mark that is not closed", where, str(error))
    return where, cells


def quoted_rows(
    path: Path, columns: Mapping[str, int], width: int, separator: str, limit: int, header: bool
) -> Iterator[Row | Fault]:
    """Rows of a table of `width` columns; `columns` gives the column of each language."""
    for number, found in enumerate(records(path, separator, limit)):
        if number == 0 and header:
            continue
        try:
            if isinstance(found, Fault):
                raise found
            where, cells = found
            if len(cells) != width:
                if not any(cells):
                    raise Fault("empty line", where)
                raise Fault("wrong number of columns", where, f"{len(cells)} instead of {width}")
            yield row_of({code: cells[column] for code, column in columns.items()}, where)
        except Fault as fault:
            yield fault


def goes_on(lines: Sequence[bytes | None], line: int, width: int) -> bool:
    """Whether a line belongs to a quoted record of `width` cells that spans several lines.

    Such a record has an odd number of quotation marks in its first and in its last line.
    """
    odd = lambda number: (lines[number] or b"").count(b'"') % 2
    before = next(filter(odd, range(line - 1, max(line - _MOST, 0) - 1, -1)), line)
    for start in {line, before}:
        last = next(filter(odd, range(start + 1, min(start + _MOST, len(lines)))), -1)
        if odd(start) and last >= line:
            text = b"\n".join(part or b"" for part in lines[start : last + 1])
            found = _record(text.decode("utf-8", "replace"), "", "\t")
            if not isinstance(found, Fault) and len(found[1]) == width:
                return True
    return False
