"""The size table of a corpus folder, like Tables 4 and 5 of Wang et al. 2021."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from typing_extensions import TypedDict

from gradvac.corpus.folder import read_manifest
from gradvac.errors import CorpusError
from gradvac.reading import read_json
from gradvac.tables import Table, csv_text, latex
from gradvac.text.languages import family_order, language, resource_levels

FORMATS = ("md", "csv", "tex")
HEADER = ("code", "language", "family", "level", "train", "valid", "test")


class _Filtered(TypedDict):
    kept: int
    left_out: dict[str, int]


class _Report(TypedDict):
    files: dict[str, _Filtered]


class Line(NamedTuple):
    """A language of a corpus: name, family, resource level, pairs with English in each split."""

    code: str
    language: str
    family: str
    level: str
    train: int
    valid: int
    test: int


def size_lines(folder: Path) -> list[Line]:
    """Languages of a corpus folder, family by family as in the paper, levels by training pairs.

    Raises:
        CorpusError: not a corpus folder.
    """
    pairs = read_manifest(folder)["pairs"]
    train, valid, test = (pairs.get(part, {}) for part in ("train", "valid", "test"))
    levels = resource_levels(train)
    return [
        Line(
            code,
            language(code).name,
            language(code).family,
            levels[code],
            train[code],
            valid.get(code, 0),
            test.get(code, 0),
        )
        for code in family_order(train)
    ]


def size_table(folder: Path, total: bool = False) -> Table:
    """The table to print, with a row of sums if ``total``."""
    lines = size_lines(folder)
    sums = (sum(x.train for x in lines), sum(x.valid for x in lines), sum(x.test for x in lines))
    rows = [*lines, *[("", "all", "", "", *sums)] * total]
    cells = [[f"{v:,}" if isinstance(v, int) else v for v in row] for row in rows]
    return Table(HEADER, cells, str(folder), words=HEADER[:4], rules=[len(lines)])


def size_text(folder: Path, kind: str) -> str:
    """The table as Markdown (`md`), CSV (`csv`) or LaTeX (`tex`).

    Raises:
        CorpusError: another format, or not a corpus folder.
    """
    if kind == "csv":
        return csv_text([HEADER, *size_lines(folder)])
    if kind not in FORMATS:
        raise CorpusError(f"{kind!r} is no format of tables: allowed are {', '.join(FORMATS)}")
    table = replace(size_table(folder, total=True), title="")
    return table.markdown() + "\n" if kind == "md" else latex([table], [])


def report_table(folder: Path) -> Table:
    """What a cleaning kept and removed from each file, by filter.

    Raises:
        CorpusError: `folder` has no cleaning report.
    """
    file = folder / "report.json"
    files = read_json(file, _Report)["files"]
    counts = {name: Counter({"kept": f["kept"], **f["left_out"]}) for name, f in files.items()}
    rows = [
        [reason, *(f"{counts[name][reason]:,}" for name in files)]
        for reason in sum(counts.values(), Counter())
    ]
    return Table(["rows", *files], rows, str(folder))
