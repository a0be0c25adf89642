"""Parallel text from files, whatever their format: rows of one shape, problems located.

| format  | files                        | languages                                        |
|---------|------------------------------|--------------------------------------------------|
| `tsv`   | `path`                       | header of codes, or `languages` column by column |
| `csv`   | as `tsv`                     | as `tsv`; cells may be in quotation marks        |
| `text`  | `paths`, one per language    | the keys of `paths`; line n translates line n    |
| `jsonl` | `path`                       | keys of each object, or of its "translation"     |
| `mo`    | `paths`, one per translation | the keys of `paths`, from `msgid_language`       |
| `po`    | as `mo`                      | as `mo`                                          |

All are UTF-8 (catalogues may name another charset) and may be compressed with gzip, xz or bzip2.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gradvac.errors import CorpusError, RecipeError
from gradvac.text.account import Account
from gradvac.text.alignment import watched
from gradvac.text.blocks import Block, Row, row_of
from gradvac.text.catalogues import Message, mo_messages, po_messages
from gradvac.text.escapes import noted, unescaped
from gradvac.text.languages import ENGLISH, is_code, is_known, language, nearest_code, same_language
from gradvac.text.quoted import quoted_rows, records
from gradvac.text.tables import aligned_files, table, tables
from gradvac.text.textfiles import (
    COMPRESSED,
    LINE_LIMIT,
    Fault,
    check_text,
    decode,
    raw_lines,
)

FORMATS = ("tsv", "text", "jsonl", "mo", "po", "csv")


@dataclass(frozen=True, slots=True)
class Source:
    """Files that hold parallel text; see the table at the top of this module.

    Exactly one of `path` and `paths` is given. `format` None is inferred from the suffix.
    `languages` names the columns of a TSV without header, or picks columns or keys.
    `line_limit` is in bytes; a longer line is a problem of its row. `check` False trusts that
    columns belong together (`alignment`); `quoted` says that cells of a TSV may be in quotation
    marks, as in CSV; `unescape` undoes what Moses writes for some characters (`escapes`).

    Raises:
        RecipeError: a format that does not exist or fit, or a code that names no language.
    """

    format: str | None = None
    path: Path | None = None
    paths: Mapping[str, Path] | None = None
    languages: tuple[str, ...] | None = None
    msgid_language: str = ENGLISH
    line_limit: int = LINE_LIMIT
    check: bool = True
    quoted: bool = False
    unescape: bool = False

    def __post_init__(self) -> None:
        if (self.path is None) == (self.paths is None) or self.paths == {}:
            raise RecipeError("a source needs either path (one file) or paths (language: file)")
        set_ = object.__setattr__
        if self.path is not None:
            set_(self, "path", Path(self.path))
        if self.paths is not None:
            set_(self, "paths", {code: Path(path) for code, path in self.paths.items()})
        if self.languages is not None:
            set_(self, "languages", tuple(self.languages))
        set_(self, "format", _infer_format(self) if self.format is None else self.format)
        _check(self)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order given."""
        return (self.path,) if self.path is not None else tuple((self.paths or {}).values())

    @property
    def name(self) -> str:
        """The name under which an account counts this source: its files."""
        return ", ".join(str(path) for path in self.files)


def read_rows(source: Source, account: Account) -> Iterator[Row]:
    """Rows of a source in the order of the file; `account` counts rows kept and left out.

    A row with a problem (invalid UTF-8, control characters, a line over the limit, a wrong number
    of columns, invalid JSON, wrong types, fewer than two texts) is dropped as a whole or ends the
    reading, as the account's policy says. So are lines of an aligned file beyond the end of the
    shortest: under "drop" the lines all files have are still used. A missing text (an empty cell)
    is no problem as long as two languages remain.

    Raises:
        CorpusError: whatever the policy, a file that is missing, empty, truncated or not in its
            format at all, or columns that do not belong together; under "fail", the first problem.
    """
    yield from counted(source.name, one_by_one(_items(source, account)), account)


def read_blocks(source: Source, account: Account) -> Iterator[Row | Block]:
    """What `read_rows` gives, some thousand rows at a time where the format allows.

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
    """What the files hold; escapes undone or noted, columns watched."""
    read = _READERS[source.format or ""](source)
    name = source.name
    items = unescaped(one_by_one(read)) if source.unescape else noted(read, name, account)
    catalogue = source.format in ("mo", "po")  # where a message stands beside its translation
    return watched(items) if source.check and not catalogue else items


def counted(name: str, items: Iterable[Row | Fault], account: Account) -> Iterator[Row]:
    """The rows among `items`; `account` counts them, and the faults of others, as `name`."""
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
    """The rows and faults of blocks among them."""
    for item in items:
        if isinstance(item, Block):
            yield from item.items()
        else:
            yield item


def _infer_format(source: Source) -> str:
    suffixes = {
        (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.removeprefix(".")
        for path in source.files
    }
    found = suffixes.pop()
    if not suffixes and found in FORMATS:
        return found
    if source.paths is not None:
        return "text"
    raise RecipeError(
        f"{source.name}: the suffix {found!r} names no format; rename the file or set format: "
        f"allowed are {', '.join(FORMATS)}{_nearest(found)}"
    )


def _nearest(text: str) -> str:
    found = difflib.get_close_matches(text.lower(), FORMATS, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def _check(source: Source) -> None:
    if source.format not in FORMATS:
        raise RecipeError(
            f"format is {source.format!r}: allowed are {', '.join(FORMATS)}"
            f"{_nearest(str(source.format))}"
        )
    by_language = source.format in ("text", "mo", "po")
    if by_language and source.paths is None:
        raise RecipeError(
            f"{source.name}: format {source.format} needs paths (language: file), as in "
            f"paths: {{fr: {source.path}}}"
        )
    if not by_language and source.path is None:
        raise RecipeError(f"{source.name}: format {source.format} needs path (one file)")
    if source.quoted and source.format not in ("tsv", "csv"):
        raise RecipeError(f"{source.name}: quoted is for tsv and csv, not for {source.format}")
    codes = [*(source.paths or ()), *(source.languages or ()), source.msgid_language]
    for code in codes:
        if not is_code(code):
            raise RecipeError(
                f"{code!r} is not a language code: "
                f"letters, digits and underscores are allowed{nearest_code(code)}"
            )
    named = source.paths if source.format == "text" else source.languages
    if named is not None and len(set(named)) < max(2, len(named)):
        raise RecipeError(f"languages are {tuple(named)}: allowed are two or more different codes")
    if source.format in ("mo", "po") and source.msgid_language in (source.paths or ()):
        raise RecipeError(
            f"paths has {source.msgid_language!r}, which is the language of the msgids"
        )


def _tsv(source: Source) -> Iterator[Row | Fault | Block]:
    (path,) = source.files
    if source.quoted or source.format == "csv":
        yield from _quoted(source, path)
        return
    lines = raw_lines(path, source.line_limit)
    where = f"{path}:1"
    for first in islice(lines, 1):  # one there is: an empty file was refused
        header = _header(source, _cells(source, first, where), where)
        names = header if header is not None else source.languages or ()
        columns = {c: names.index(c) for c in source.languages or names}
        if header is None:
            yield from table(path, [first], columns, len(names), 1).items()
        yield from tables(path, lines, columns, len(names), 2)


def _quoted(source: Source, path: Path) -> Iterator[Row | Fault]:
    """Rows of a table with cells in quotation marks; of CSV with semicolons, if the header has."""
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
    """The cells of a first line; None where it cannot be read, and need not be a header."""
    try:
        return decode(line, where).split("\t")
    except Fault as fault:
        if source.languages is not None:
            return None
        raise CorpusError(f"{where}: {fault.reason} in the header: {fault.detail}") from fault


def _header(source: Source, found: list[str] | None, where: str) -> tuple[str, ...] | None:
    """The codes of the cells of a header, None where the first line is text already.

    With `languages`, the first line is a header if it names a known language in every column;
    without, it has to be one.
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
    """Whether a cell names a language; a word of three letters may be text, if it need not."""
    found = language(cell)
    return is_code(cell) and (
        is_known(cell)
        or ("_" in cell and found.script != "")
        or (not wanted and found.family != "other")
    )


def _spelled(cell: str, cells: Sequence[str], wanted: Sequence[str]) -> str:
    """A cell of the header as `languages` spell it: `eng_Latn` is the `en` that is wanted."""
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
