"""Parallel text from files of any format: rows of one type, problems with their places."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gradvac.errors import CorpusError
from gradvac.text.account import Account
from gradvac.text.alignment import watched
from gradvac.text.blocks import Block, Row, row_of
from gradvac.text.catalogues import Message, mo_messages, po_messages
from gradvac.text.escapes import noted, unescaped
from gradvac.text.languages import is_code, is_known, language, nearest_code, same_language
from gradvac.text.quoted import quoted_rows, records
from gradvac.text.sources import Source
from gradvac.text.tables import aligned_files, table, tables
from gradvac.text.textfiles import (
    Fault,
    check_text,
    decode,
    raw_lines,
)


def read_rows(source: Source, account: Account) -> Iterator[Row]:
    """Rows of a source in the order of the file; `account` counts rows kept and left out.

    A row with a problem (invalid UTF-8, control characters, a line over the limit, a wrong number
    of columns, invalid JSON, wrong types, fewer than two texts) is dropped as a whole or ends the
    reading, by the account's policy. The same holds for lines of an aligned file after the end of
    the shortest: under "drop" the lines that all files have are still used. A missing text (an
    empty cell) is not a problem while two languages remain.

    Raises:
        CorpusError: under any policy, a file that is missing, empty, truncated or not in its
            format at all, or columns that do not belong together; under "fail", the first problem.
    """
    yield from counted(source.name, one_by_one(_items(source, account)), account)


def read_blocks(source: Source, account: Account) -> Iterator[Row | Block]:
    """The same as `read_rows`, in blocks of some thousand rows where the format allows.

    Raises:
        CorpusError: as `read_rows`.
    """
    for item in _items(source, account):
        if isinstance(item, Block):
            for _, fault in item.faults:
                _count_fault(source.name, fault, account)
            account.keep(source.name, len(item))
            yield item
        else:
            yield from counted(source.name, [item], account)


def _items(source: Source, account: Account) -> Iterator[Row | Fault | Block]:
    """The content of the files; escapes undone or noted, alignment of columns checked."""
    read = _READERS[source.format or ""](source)
    name = source.name
    items = unescaped(one_by_one(read)) if source.unescape else noted(read, name, account)
    catalogue = source.format in ("mo", "po")  # a message is beside its translation
    return watched(items) if source.check and not catalogue else items


def counted(name: str, items: Iterable[Row | Fault], account: Account) -> Iterator[Row]:
    """The rows among `items`; `account` counts rows and faults under `name`."""
    account.start(name)
    for item in items:
        if isinstance(item, Row):
            account.keep(name)
            yield item
        else:
            _count_fault(name, item, account)


def _count_fault(name: str, fault: Fault, account: Account) -> None:
    if fault.skip:
        account.drop(name, fault.reason, fault.where, fault.count)
    else:
        account.problem(name, fault.reason, fault.where, fault.detail, fault.count)


def one_by_one(items: Iterable[Row | Fault | Block]) -> Iterator[Row | Fault]:
    """The items with each block replaced by its rows and faults."""
    for item in items:
        if isinstance(item, Block):
            yield from item.items()
        else:
            yield item


def _tsv(source: Source) -> Iterator[Row | Fault | Block]:
    (path,) = source.files
    if source.quoted or source.format == "csv":
        yield from _quoted(source, path)
        return
    lines = raw_lines(path, source.line_limit)
    where = f"{path}:1"
    for first in islice(lines, 1):  # there is one: empty files are an error
        header = _header(source, _cells(source, first, where), where)
        names = header if header is not None else source.languages or ()
        columns = {c: names.index(c) for c in source.languages or names}
        if header is None:
            yield from table(path, [first], columns, len(names), 1).items()
        yield from tables(path, lines, columns, len(names), 2)


def _quoted(source: Source, path: Path) -> Iterator[Row | Fault]:
    """Rows of a table with quoted cells; of a CSV with semicolons if its header has them."""
    separator = "\t" if source.format == "tsv" else ","
    first = next(records(path, separator, source.line_limit))
    if isinstance(first, Fault):
        raise CorpusError(f"{first.where}: {first.reason} in the header: {first.detail}")
    cells = first[1]
    if separator == "," and len(cells) == 1 and ";" in cells[0]:
        separator, cells = ";", cells[0].split(";")
    header = _header(source, cells, f"{path}:1")
    names = header if header is not None else source.languages or ()
    columns = {c: names.index(c) for c in source.languages or names}
    yield from quoted_rows(
        path, columns, len(names), separator, source.line_limit, header is not None
    )


def _cells(source: Source, line: bytes | None, where: str) -> list[str] | None:
    """The cells of a first line; None if it cannot be read and need not be a header."""
    try:
        return decode(line, where).split("\t")
    except Fault as fault:
        if source.languages is not None:
            return None
        raise CorpusError(f"{where}: {fault.reason} in the header: {fault.detail}") from fault


def _header(source: Source, found: list[str] | None, where: str) -> tuple[str, ...] | None:
    """The codes in the cells of a header, None if the first line is text already.

    With `languages`, the first line is a header if it names a known language in every column;
    without, it must be a header.
    """
    if found is None:
        return None
    cells = tuple(cell.strip().replace("-", "_") for cell in found)
    wanted = source.languages or ()
    cells = tuple(_spelled(cell, cells, wanted) for cell in cells)
    unknown = [cell for cell in cells if cell not in wanted and not _is_language(cell, wanted)]
    if wanted and unknown:
        return None
    if unknown:
        raise CorpusError(
            f"{where}: unknown column {unknown[0][:50]!r} in the header: allowed are language codes"
            f"{nearest_code(unknown[0][:50])}; or name the columns with languages"
        )
    for code in wanted:
        if code not in cells:
            raise CorpusError(f"{where}: no column {code!r}; the header has {', '.join(cells)}")
    if len(set(cells)) < len(cells):
        twice = next(cell for cell in cells if cells.count(cell) > 1)
        raise CorpusError(f"{where}: column {twice!r} appears twice in the header")
    if len(cells) < 2:
        raise CorpusError(
            f"{where}: the header has one column, {', '.join(cells)!r}: two or more are needed, "
            f"separated by {'tabs' if source.format == 'tsv' else 'commas'}"
        )
    return cells


def _is_language(cell: str, wanted: Sequence[str]) -> bool:
    """Whether a cell names a language; if it need not, a three-letter word may be text."""
    found = language(cell)
    return is_code(cell) and (
        is_known(cell)
        or ("_" in cell and found.script != "")
        or (not wanted and found.family != "other")
    )


def _spelled(cell: str, cells: Sequence[str], wanted: Sequence[str]) -> str:
    """A header cell in the spelling of `languages`: `eng_Latn` becomes the `en` in `wanted`."""
    if cell in wanted or not _is_language(cell, wanted):
        return cell
    same = (c for c in wanted if c not in cells and same_language(c, cell))
    return next(same, cell)


def _text(source: Source) -> Iterator[Row | Fault | Block]:
    return aligned_files(dict(source.paths or {}), source.line_limit)


def _jsonl(source: Source) -> Iterator[Row | Fault]:
    (path,) = source.files
    for number, line in enumerate(raw_lines(path, source.line_limit), 1):
        where = f"{path}:{number}"
        try:
            yield _json_row(source, decode(line, where), where)
        except Fault as fault:
            yield fault


def _json_row(source: Source, line: str, where: str) -> Row:
    if not line or line.isspace():
        raise Fault("empty line", where)
    try:
        found = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise Fault("invalid JSON", where, str(error)) from error
    if isinstance(found, dict) and "translation" in found:
        found = found["translation"]
    if not isinstance(found, dict):
        raise Fault("wrong JSON type", where, f"{_kind(found)} instead of an object")
    texts: dict[str, str] = {}
    for key, value in found.items():
        code = key.replace("-", "_")
        if source.languages is not None and code not in source.languages:
            continue
        if not is_code(code):
            raise Fault("not a language code", where, f"key {key[:50]!r}; name languages to pick")
        if value is not None and not isinstance(value, str):
            raise Fault("wrong JSON type", where, f"{key!r} is {_kind(value)} instead of a text")
        texts[code] = check_text(value or "", where)
    return row_of(texts, where)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key appears twice")
    return found


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")


def _catalogues(source: Source) -> Iterator[Row | Fault]:
    messages: Callable[[Path, int], Iterator[Message | Fault]]
    messages = mo_messages if source.format == "mo" else po_messages
    for code, path in (source.paths or {}).items():
        for message in messages(path, source.line_limit):
            if isinstance(message, Fault):
                yield message
                continue
            texts = {source.msgid_language: message.source, code: message.target}
            try:
                yield row_of(texts, message.where)
            except Fault as fault:
                yield fault


_READERS: Mapping[str, Callable[[Source], Iterator[Row | Fault | Block]]] = {
    "tsv": _tsv,
    "csv": _tsv,
    "text": _text,
    "jsonl": _jsonl,
    "mo": _catalogues,
    "po": _catalogues,
}
