"""The size table of a corpus folder: Tables 4 and 5 of Wang et al. 2021, of one's own text."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from typing_extensions import TypedDict

from gradvac.corpus.folder import read_manifest
from gradvac.errors import CorpusError
from gradvac.reading import read_json
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
        CorpusError: no corpus folder.
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


def size_table(folder: Path) -> Table:
    """The table for a terminal."""
    table = Table(title=str(folder))
    for name in HEADER:
        table.add_column(name, justify="right" if name in ("train", "valid", "test") else "left")
    for line in size_lines(folder):
        table.add_row(*(f"{v:,}" if isinstance(v, int) else v for v in line))
    return table


def size_text(folder: Path, kind: str) -> str:
    """The table as Markdown (`md`), CSV (`csv`) or LaTeX (`tex`).

    Raises:
        CorpusError: another format, or no corpus folder.
    """
    lines = size_lines(folder)
    if kind == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([HEADER, *lines])
        return out.getvalue()
    sums = [sum(sizes) for sizes in zip(*((x.train, x.valid, x.test) for x in lines), strict=True)]
    total = ["", "all", "", "", *sums]
    cells = [[f"{v:,}" if isinstance(v, int) else v for v in line] for line in [*lines, total]]
    if kind == "md":
        rule = ["-", "-", "-", "-", "-:", "-:", "-:"]
        return "".join("| " + " | ".join(row) + " |\n" for row in [HEADER, rule, *cells])
    if kind == "tex":
        body = [" & ".join(row) + r" \\" for row in cells]
        head = " & ".join(HEADER) + r" \\"
        rows = [r"\begin{tabular}{llllrrr}", r"\hline", head, r"\hline", *body[:-1], r"\hline"]
        return "\n".join([*rows, body[-1], r"\hline", r"\end{tabular}", ""])
    raise CorpusError(f"{kind!r} is no format of tables: allowed are {', '.join(FORMATS)}")


def report_table(folder: Path) -> Table:
    """What a cleaning kept and left out of each file, by filter.

    Raises:
        CorpusError: `folder` has no report of a cleaning.
    """
    file = folder / "report.json"
    files = read_json(file, _Report)["files"]
    table = Table(title=str(folder))
    table.add_column("rows")
    for name in files:
        table.add_column(name, justify="right")
    counts = {name: Counter({"kept": f["kept"], **f["left_out"]}) for name, f in files.items()}
    for reason in sum(counts.values(), Counter()):
        table.add_row(reason, *(f"{counts[name][reason]:,}" for name in files))
    return table
