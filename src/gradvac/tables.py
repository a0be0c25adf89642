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
from dataclasses import dataclass, replace
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
        """A ``tabular`` with the lines of booktabs; `latex` defines them without the package."""
        places = "".join("l" if left else "r" for left in self._left())
        lines = [rf"\begin{{tabular}}{{{places}}}", r"\toprule", _ampersands(self.heads)]
        for n, row in enumerate(self.rows):
            lines += [r"\midrule"] * (n == 0 or n in self.rules) + [_ampersands(row)]
        title = [_comment(self.title)] if self.title else []
        return "\n".join([*title, *lines, r"\bottomrule", r"\end{tabular}"])

    def split(self, room: float, gap: float) -> list[Table]:
        """The table, or parts of its columns, each with the first one, that fit a line.

        Args:
            room: characters of a line.
            gap: characters that each column needs besides its widest cell.
        """
        first, *others = (width + gap for width in self.widths())
        parts: list[list[int]] = [[]]
        left = room - first
        for n, width in enumerate(others, 1):
            if width > left and parts[-1]:
                parts.append([])
                left = room - first
            parts[-1].append(n)
            left -= width
        if len(parts) == 1:
            return [self]
        return [
            replace(
                self,
                heads=[self.heads[n] for n in (0, *part)],
                rows=[[row[n] for n in (0, *part)] for row in self.rows],
                title=f"{self.title} ({number} of {len(parts)})".lstrip(),
            )
            for number, part in enumerate(parts, 1)
        ]

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


# Lines of booktabs, or plain ones in a document that does not load it.
_RULES = "".join(rf"\providecommand{{\{name}rule}}{{\hline}}" for name in ("top", "mid", "bottom"))
# A line of the class article at 10 pt has 345 pt. Measured with bold digits of 5.75 pt, and 12 pt
# between columns.
_LINE, _GAP = 60.0, 2.1


def latex(tables: Iterable[Table], notes: Iterable[str]) -> str:
    """Tables as LaTeX, each no wider than a line of text, then what a reader has to know.

    No package is needed; with booktabs the lines are its own.
    """
    head = ["% To be read with \\input. It needs no package; booktabs makes finer lines.", _RULES]
    parts = [part for table in tables for part in table.split(_LINE, _GAP)]
    texts = [_titled(part) if part.title else part.latex() for part in parts]
    said = [rf"\par {_breakable(note)}" for note in notes]
    if said:
        said = [r"\par\medskip{\footnotesize\raggedright\setlength{\parindent}{0pt}", *said]
        said.append(r"\par}")
    return "\n\n".join(["\n".join(head), *texts, "\n".join(said)]).rstrip("\n") + "\n"


def _titled(table: Table) -> str:
    title = rf"\par\medskip\noindent {_latex(table.title)}\par\nopagebreak\smallskip\noindent"
    return f"{title}\n{replace(table, title='').latex()}\\par"


def _breakable(text: str) -> str:
    """Text whose long words, such as signatures, may be broken after | and :."""
    return re.sub(r"\$\|\$|(?<=\w):(?=\w)|/(?=\w)", r"\g<0>\\allowbreak{}", _latex(text))


def decimal(value: float, digits: int, sign: str = "") -> str:
    """A rounded number; one that is rounded to zero has no sign.

    >>> decimal(-0.04, 1), decimal(0.04, 1, "+"), decimal(0.25, 2, "+"), decimal(-1.25, 2)
    ('0.0', '0.0', '+0.25', '-1.25')
    """
    text = f"{value:{sign}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


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
