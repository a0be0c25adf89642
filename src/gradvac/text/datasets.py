"""Tables: TSV and CSV with any header (TED included), Parquet, Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gradvac.errors import CorpusError, RunError
from gradvac.text.blocks import Row, row_of
from gradvac.text.quoted import quoted_rows, records
from gradvac.text.tables import tables
from gradvac.text.textfiles import LINE_LIMIT, Fault, check_text, decode, raw_lines

# How the multi-way table of TED talks (Qi et al. 2018) writes "not translated".
NULL = "__NULL__"
_BATCH = 1000


@dataclass(frozen=True)
class Shape:
    """How a table is written: the separator of cells, and whether cells may be in quotes."""

    separator: str = "\t"
    quoted: bool = False


def header(path: Path, shape: Shape) -> list[str]:
    """The cells of the first line; none if the file is not text."""
    if shape.quoted:
        first = next(records(path, shape.separator, LINE_LIMIT))
        return [] if isinstance(first, Fault) else first[1]
    try:
        return decode(next(raw_lines(path)), f"{path}:1").split(shape.separator)
    except Fault:
        return []


def tsv(
    path: Path, columns: Mapping[int, str], skip_first: bool, width: int, shape: Shape
) -> Iterator[Row | Fault]:
    """Rows of a table; `columns` gives the language of each column."""
    by_code = {code: column for column, code in columns.items()}
    items: Iterator[Row | Fault]
    if shape.quoted:
        items = quoted_rows(path, by_code, width, shape.separator, LINE_LIMIT, skip_first)
    else:
        lines = islice(raw_lines(path), int(skip_first), None)
        blocks = tables(path, lines, by_code, width, 1 + int(skip_first))
        items = (item for block in blocks for item in block.items())
    for item in items:
        yield _translated(item) if isinstance(item, Row) else item


def _translated(row: Row) -> Row | Fault:
    """A row without the cells that mark a missing translation."""
    if NULL not in "".join(row.texts.values()):
        return row
    try:
        return row_of({c: t for c, t in row.texts.items() if t.strip() != NULL}, row.where)
    except Fault as fault:
        return fault


def parquet_columns(path: Path) -> list[str]:
    """Names of the columns of a Parquet file, or of its `translation`."""
    with _parquet(path) as file:
        schema = file.schema_arrow
        if "translation" in schema.names:
            return [field.name for field in schema.field("translation").type]
        return list(schema.names)


def parquet(path: Path, columns: Sequence[str]) -> Iterator[Row | Fault]:
    """Rows of a Parquet file, read in batches."""
    with _parquet(path) as file:
        nested = "translation" in file.schema_arrow.names
        names = ["translation"] if nested else list(columns)
        number = 0
        try:
            for batch in file.iter_batches(_BATCH, columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield _row(row["translation"] if nested else row, columns, f"{path}:{number}")
        except (OSError, ValueError) as error:
            raise CorpusError(f"{path}:{number + 1}: cannot be read further: {error}") from error


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as e:
        raise RunError("Parquet needs pyarrow: pip install 'gradvac[datasets]'") from e
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise CorpusError(f"{path}: not Parquet, or cut off: {error}") from error


def saved_splits(folder: Path) -> dict[str, Any]:
    """The splits of a data set that `datasets` saved with `save_to_disk`."""
    try:
        import datasets
    except ImportError as e:
        raise RunError("saved data sets need datasets: pip install 'gradvac[datasets]'") from e
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise CorpusError(f"{folder}: datasets cannot load it: {error}") from error
    many = isinstance(found, dict)
    return {str(k): v for k, v in found.items()} if many else {folder.name: found}


def saved_columns(data: Any) -> list[str]:
    """Names of the columns of a saved data set, or of its `translation`."""
    if "translation" not in data.column_names:
        return list(data.column_names)
    feature = data.features["translation"]
    return list(getattr(feature, "languages", None) or feature)


def saved(data: Any, columns: Sequence[str], name: str) -> Iterator[Row | Fault]:
    """Rows of one split of a saved data set."""
    nested = "translation" in data.column_names
    for number, row in enumerate(data, 1):
        yield _row(row["translation"] if nested else row, columns, f"{name}:{number}")


def _row(values: Mapping[str, Any], columns: Iterable[str], where: str) -> Row | Fault:
    try:
        texts = {}
        for name in columns:
            value = values.get(name)
            if value is not None and not isinstance(value, str):
                raise Fault("not a text", where, f"{name!r} is {type(value).__name__}")
            texts[name] = check_text(" ".join((value or "").split()), where)
        return row_of(texts, where)
    except Fault as fault:
        return fault
