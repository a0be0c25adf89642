r"""Tables: one description of a table, and what it is in a terminal, Markdown, LaTeX, CSV, or text.

>>> table = Table(["", "BLEU"], [["joint", "9.1"], ["grad|vac", Cell("9.8", bold=True)]])
>>> print(table.markdown())
|  | BLEU |
|---|---:|
| joint | 9.1 |
| grad\|vac | **9.8** |
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table as RichTable

# What Markdown takes for markup; an underscore inside a word is none.
_MARKUP = re.compile(r"[\\|*`<]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# A cell that begins with [ or * would be an argument of the \\ before it.
_LATEX = {
    "->": r"$\rightarrow$",
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": "$|$",
    "<": "$<$",
    ">": "$>$",
    "[": "{[}",
    "*": "{*}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
}
_SPECIAL = re.compile("|".join(["-(?=-)", *map(re.escape, _LATEX)]))


@dataclass(frozen=True)
class Cell:
    """Text of a cell that stands out: ``bold``, in LaTeX alone ``underlined``, or with a star."""

    text: str
    bold: bool = False
    underlined: bool = False
    star: bool = False


@dataclass(frozen=True)
class Table:
    """A table to read.

    Attributes:
        heads: of the columns.
        rows: cells of each row, one for each head.
        title: above it; in LaTeX a comment.
        words: heads of columns that have words, to the left; the first column always is one. All
            others have numbers, to the right.
        rules: rows, counted from 0, that have a line above; Markdown has none.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""
    words: Collection[str] = ()
    rules: Collection[int] = ()

    def _left(self) -> list[bool]:
        return [n == 0 or head in self.words for n, head in enumerate(self.heads)]

    def terminal(self, whole: Collection[str] | None = None, **options: Any) -> RichTable:
        """The table for a terminal.

        Args:
            whole: heads of columns that are never broken into lines; None for those of numbers.
            options: of rich's table.
        """
        from rich.table import Table as RichTable
        from rich.text import Text

        from gradvac.terminal import printable

        shown = RichTable(title=self.title or None, title_justify="left", **options)
        for head, left in zip(self.heads, self._left(), strict=True):
            kept = not left if whole is None else head in whole
            shown.add_column(head, justify="left" if left else "right", no_wrap=kept)
        for n, row in enumerate(self.rows):
            if n in self.rules:
                shown.add_section()
            cells = (cell if isinstance(cell, Cell) else Cell(cell) for cell in row)
            shown.add_row(
                *(Text(printable(c.text + "*" * c.star), "bold" if c.bold else "") for c in cells)
            )
        return shown

    def markdown(self) -> str:
        """The title, if any, and a table of pipes, as GitHub reads it."""
        left = self._left()
        lines = [
            _bars(map(_markdown, self.heads)),
            "".join("|---" if is_left else "|---:" for is_left in left) + "|",
            *(_bars(map(_markdown, row)) for row in self.rows),
        ]
        return "\n".join([*([self.title, ""] if self.title else []), *lines])

    def latex(self) -> str:
        """A ``tabular`` with the lines of the package booktabs."""
        places = "".join("l" if left else "r" for left in self._left())
        lines = [rf"\begin{{tabular}}{{{places}}}", r"\toprule", _ampersands(self.heads)]
        for n, row in enumerate(self.rows):
            lines += [r"\midrule"] * (n == 0 or n in self.rules) + [_ampersands(row)]
        title = [_comment(self.title)] if self.title else []
        return "\n".join([*title, *lines, r"\bottomrule", r"\end{tabular}"])

    def widths(self) -> list[int]:
        """Of the columns in plain characters."""
        return [max(map(len, c)) for c in zip(*self._plain(), strict=True)]

    def _plain(self) -> list[list[str]]:
        return [[_plain(cell) for cell in row] for row in (self.heads, *self.rows)]

    def text(self) -> str:
        """Columns as wide as their widest cell, in plain characters."""
        widths, left = self.widths(), self._left()
        lines = [
            "  ".join(
                cell.ljust(width) if is_left else cell.rjust(width)
                for cell, width, is_left in zip(row, widths, left, strict=True)
            )
            for row in self._plain()
        ]
        return "\n".join(f"  {line}".rstrip() for line in lines)


def markdown(tables: Iterable[Table], notes: Iterable[str]) -> str:
    """Tables as Markdown, then what a reader has to know, as a list."""
    parts = [table.markdown() for table in tables]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]) + "\n"


def latex(tables: Iterable[Table], notes: Iterable[str]) -> str:
    """Tables as LaTeX, then what a reader has to know, as comments."""
    parts = [table.latex() for table in tables]
    return "\n\n".join([*parts, "\n".join(map(_comment, notes))]) + "\n"


def csv_text(lines: Iterable[Iterable[Any]], end: str = "\n") -> str:
    r"""Lines of values as CSV; None is an empty cell.

    >>> csv_text([["row", "mean"], ["a, b", None]])
    'row,mean\n"a, b",\n'
    """
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=end).writerows(lines)
    return out.getvalue()


def _plain(cell: str | Cell) -> str:
    return cell if isinstance(cell, str) else cell.text + "*" * cell.star


def _markdown(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return _MARKUP.sub(r"\\\g<0>", _one_line(cell))
    text = _markdown(cell.text)
    return (f"**{text}**" if cell.bold else text) + r"\*" * cell.star


def _latex(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return _SPECIAL.sub(
            lambda found: _LATEX.get(found[0], "-{}"),  # else -- would be one dash
            _one_line(cell),
        )
    text = _latex(cell.text)
    text = rf"\textbf{{{text}}}" if cell.bold else text
    text = rf"\underline{{{text}}}" if cell.underlined else text
    return text + "$^{*}$" * cell.star


def _one_line(text: str) -> str:
    return " ".join(text.split()) if not text.isprintable() else text


def _comment(text: str) -> str:
    return f"% {_one_line(text)}"


def _bars(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ampersands(cells: Iterable[str | Cell]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"
