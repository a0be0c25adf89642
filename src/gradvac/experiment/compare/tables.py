"""A comparison as tables to read: in the terminal, in Markdown, in LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.table import Table
from rich.text import Text

from gradvac.experiment.compare.compare import LEVEL, Cell, Clock, Comparison, Row
from gradvac.experiment.compare.results import Metric
from gradvac.translation.scoring import family_of
from gradvac.translation.significance import FEW

NAMES: dict[Metric, str] = {
    "bleu": "BLEU",
    "chrf": "chrF++",
    "comet": "COMET",
    "f1": "F1",
    "accuracy": "accuracy %",
    "nll": "validation NLL",
    "off_target": "off-target %",
}
DIGITS: dict[Metric, int] = {**dict.fromkeys(NAMES, 1), "comet": 4, "nll": 3}
CLOCKS: dict[Clock, str] = {
    "cpu_seconds": "CPU seconds",
    "seconds": "wall-clock seconds, which say little where a machine had other work,",
}
MOST_DIRECTIONS = 8  # more than that, and a table shows averages alone; CSV and JSON show all


def columns(found: Comparison, metric: Metric, every_direction: bool) -> list[str]:
    """The columns of a table to read: those in which any row has a number."""
    few = lambda names: names if every_direction or len(names) <= MOST_DIRECTIONS else []
    names = [*few(found.directions), *found.averages, *few(found.zero_shot)]
    return [n for n in names if any(n in row.cells[metric] for row in found.rows)]


def heading(found: Comparison, column: str) -> str:
    """The head of a column; a direction never trained is marked."""
    return f"{column} (zero-shot)" if column in found.zero_shot else column


def fitting(found: Comparison, metric: Metric, every_direction: bool, width: int) -> list[str]:
    """The columns that fit a terminal: families are the first to go, then levels."""
    names = columns(found, metric, every_direction)
    families = [n for n, members in found.averages.items() if n.endswith(family_of(members[0]))]
    levels = [n for n in found.averages if n not in ("avg", "zero-shot", *families)]
    zero_shot, each = found.zero_shot, [*found.directions, *found.zero_shot]
    for dropped in (
        [],
        families,
        [*families, *zero_shot],
        [*families, *zero_shot, *levels],
        [*families, *each],
    ):
        kept = [n for n in names if n not in dropped]
        heads = ["", *(heading(found, n) for n in kept)]
        rows = [[row.name, *_texts(found, row, metric, kept, str)] for row in found.rows]
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        if every_direction or sum(widths) + 3 * len(widths) + 1 <= width:
            return kept
    return [n for n in ("avg",) if n in names]


def test_in_words(found: Comparison) -> str | None:
    """The test of single directions, or languages of tagging, for which there is but one."""
    if found.test is None:
        return None
    tagging = "f1" in found.metrics
    return (
        "approximate randomisation over sentences"
        if tagging
        else f"paired {found.test} over sentences"
    )


def notes(found: Comparison) -> list[str]:
    """What a reader of the table has to know."""
    seeds = sorted({len(row.seeds) for row in found.rows})
    lines = []
    if seeds != [1]:
        lines.append(
            f"Means over {' or '.join(map(str, seeds))} seeds, with half the width of the 95% "
            "interval of the mean (Student's t)."
        )
        lines.append(
            f"Minus {found.baseline}: runs of one seed begin with the same parameters and see the "
            "same batches, so differences vary less than means. !: the 95% interval of that "
            "difference alone leaves out zero."
        )
    if found.test:
        tagging = "f1" in found.metrics
        lines.append(
            f"*: better than {found.baseline} at {LEVEL}: {test_in_words(found)} on each "
            "seed, on a majority of the seeds (Rueger), corrected for the directions (Holm). "
            f"{'F1 and accuracy of languages' if tagging else 'BLEU and chrF++ of directions'} are "
            "tested, nothing else."
        )
        lines += _few(found)
    lines.append("Bold: the best of one model for all directions.")
    lines.append(
        f"Cost: {CLOCKS[found.cost_of]} of training per token, relative to the baseline's. "
        "Time: wall-clock."
    )
    lines += [f"{name}: {text}" for name, text in found.signatures.items()]
    if found.identifier_errors:
        errors = ", ".join(f"{d} {x:.1f}" for d, x in found.identifier_errors.items())
        lines.append(
            f"Off-target: translations that py3langid identifies as another language than the "
            f"target's. Of the references it says so of this many percent: {errors}."
        )
    lines += [f"Not scored: {folder}" for folder in found.missing]
    return lines


def _few(found: Comparison) -> list[str]:
    """Where so few sentences differ that a test says little."""
    few = [f"{row.name} {d} ({n})" for row in found.rows for d, n in row.few.items()]
    if not few:
        return []
    return [
        f"Fewer than {FEW} sentences differ from those of {found.baseline}, too few for a test to "
        f"say much: {', '.join(few)}."
    ]


_BOLD = "\x01"  # before a cell; no text has it


def terminal(
    found: Comparison, metric: Metric, every_direction: bool = False, width: int = 120
) -> Table:
    """One metric, for a terminal of ``width`` characters."""
    table = Table(title=NAMES[metric], title_justify="left")
    names = fitting(found, metric, every_direction, width)
    for name in ("", *names):
        table.add_column(heading(found, name), justify="right" if name else "left", no_wrap=True)
    for row in found.rows:
        cells = _texts(found, row, metric, names, lambda x: f"{_BOLD}{x}")
        styled = [Text(c.lstrip(_BOLD), "bold" if c.startswith(_BOLD) else "") for c in cells]
        table.add_row(row.name, *styled)
    return table


def costs(found: Comparison) -> Table:
    """What each row is and cost, for the terminal."""
    table = Table(title="size and cost", title_justify="left")
    for name in ("", "seeds", "parameters", "tokens", "time", "cost"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in found.rows:
        table.add_row(row.name, ", ".join(map(str, row.seeds)), *_costs(row))
    return table


def differences(found: Comparison) -> Table:
    """Each row minus the baseline, seed by seed, for the terminal."""
    table = Table(title=f"minus {found.baseline}, on the same seeds", title_justify="left")
    heads, rows = _differences(found)
    for name in heads:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _differences(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Heads and rows; a difference whose interval leaves out zero has an exclamation mark."""
    columns = [c for c in ("avg", "high", "medium", "low") if c in found.averages]
    kinds: list[tuple[Metric, str]] = [(m, c) for m in found.metrics for c in columns]
    cells = {
        row.name: [found.difference(row, metric, column) for metric, column in kinds]
        for row in found.rows
    }
    shown = [n for n in range(len(kinds)) if any(own[n] for own in cells.values())]
    heads = ["", *(f"{NAMES[kinds[n][0]]} {kinds[n][1]}" for n in shown)]

    def text(cell: Cell | None, metric: Metric) -> str:
        if cell is None:
            return ""
        return _number(cell, metric, "+") + ("!" if abs(cell.mean) > cell.half else "")

    return heads, [
        [name, *(text(own[n], kinds[n][0]) for n in shown)]
        for name, own in cells.items()
        if any(own)
    ]


def markdown(found: Comparison, every_direction: bool = False) -> str:
    """Every metric as a Markdown table, then the notes."""
    parts = []
    for metric in found.metrics:
        names = columns(found, metric, every_direction)
        heads = ["", *(heading(found, n) for n in names), "parameters", "tokens", "time", "cost"]
        lines = [NAMES[metric], "", _bars(heads), "|---" + "|---:" * (len(heads) - 1) + "|"]
        for row in found.rows:
            cells = _texts(found, row, metric, names, lambda x: f"<b>{x}</b>")
            cells = [
                c.replace("*", r"\*").replace("<b>", "**").replace("</b>", "**") for c in cells
            ]
            lines.append(_bars([row.name, *cells, *_costs(row)]))
        parts.append("\n".join(lines))
    heads, rows = _differences(found)
    if rows:
        lines = [_bars(heads), "|---" + "|---:" * (len(heads) - 1) + "|", *map(_bars, rows)]
        parts.append("\n".join([f"minus {found.baseline}, on the same seeds", "", *lines]))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes(found))]) + "\n"


def latex(found: Comparison, every_direction: bool = False) -> str:
    """Every metric as a booktabs table; the overall best is underlined, as in Wang et al. 2021."""
    parts = []
    for metric in found.metrics:
        names = columns(found, metric, every_direction)
        heads = ["", *(heading(found, n) for n in names), "parameters", "tokens", "time", "cost"]
        lines = [
            f"% {NAMES[metric]}",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            " & ".join(map(escape, heads)) + r" \\",
            r"\midrule",
        ]
        for row in found.rows:
            cells = _texts(found, row, metric, names, lambda x: rf"\textbf{{{x}}}", _underline)
            cells = [c.replace("±", r"$\pm$").replace("*", r"$^{*}$") for c in cells]
            lines.append(" & ".join([escape(row.name), *cells, *_costs(row)]) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    text = "\n".join(f"% {note}" for note in notes(found))
    return "\n\n".join([*parts, text]) + "\n"


def _texts(
    found: Comparison,
    row: Row,
    metric: Metric,
    names: list[str],
    bold: Callable[[str], str],
    underline: Callable[[str], str] = str,
) -> list[str]:
    """The cells of a row: mean, interval, star; the best of a column in bold."""
    texts = []
    for column in names:
        cell = row.cells[metric].get(column)
        if cell is None:
            texts.append("")
            continue
        text = _number(cell, metric)
        best = {n: found.best(metric, column, several_models=n) for n in (True, False)}
        if not row.several_models and cell.mean == best[False]:
            text = bold(text)
        if cell.mean == best[True] and best[True] != best[False]:
            text = underline(text)
        texts.append(text + ("*" if cell.star else ""))
    return texts


def _number(cell: Cell, metric: Metric, sign: str = "") -> str:
    digits = DIGITS[metric]
    spread = "" if math.isnan(cell.half) else f" ±{cell.half:.{digits}f}"
    return f"{cell.mean:{sign}.{digits}f}{spread}"


def _costs(row: Row) -> list[str]:
    minutes, seconds = divmod(round(row.seconds), 60)
    clock = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    size = f"{row.parameters / 1e6:.2f}M"
    return [
        size,
        f"{row.tokens / 1e6:.2f}M",
        clock,
        "" if math.isnan(row.cost) else f"{row.cost:.2f}",
    ]


def _bars(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _underline(text: str) -> str:
    return rf"\underline{{{text}}}"


def escape(text: str) -> str:
    """Text as LaTeX wants it."""
    for plain, written in {"_": r"\_", "&": r"\&", "%": r"\%", "->": r"$\rightarrow$"}.items():
        text = text.replace(plain, written)
    return text
