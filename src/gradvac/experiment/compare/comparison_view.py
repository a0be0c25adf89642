"""A comparison as tables to read: in the terminal, in Markdown, in LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gradvac import tables
from gradvac.experiment.compare.compare import (
    LEVEL,
    Clock,
    Comparison,
    Mean,
    Row,
)
from gradvac.experiment.compare.results import Metric
from gradvac.geometry.statistics import LEAST_VALUES
from gradvac.tables import Cell, Table, decimal
from gradvac.translation.scoring import family_of
from gradvac.translation.significance import FEW

if TYPE_CHECKING:
    from rich.console import RenderableType

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
COSTS = ["parameters", "tokens", "time", "cost"]
MOST_DIRECTIONS = 8  # with more, a table shows only averages; CSV and JSON show all


def columns(found: Comparison, metric: Metric, every_direction: bool) -> list[str]:
    """The columns of a table in which any row has a number."""
    few = lambda names: names if every_direction or len(names) <= MOST_DIRECTIONS else []
    names = [*few(found.directions), *found.averages, *few(found.zero_shot)]
    return [n for n in names if any(n in row.cells[metric] for row in found.rows)]


def heading(found: Comparison, column: str) -> str:
    """The head of a column; a direction never trained is marked."""
    return f"{column} (zero-shot)" if column in found.zero_shot else column


def fitting(
    found: Comparison,
    metric: Metric,
    every_direction: bool,
    width: int,
    make: Callable[[Comparison, Metric, list[str]], Table],
) -> list[str]:
    """The columns of a table that fit a terminal; families are dropped first, then levels."""
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
        widths = make(found, metric, kept).widths()
        if every_direction or sum(widths) + 3 * len(widths) + 1 <= width:
            return kept
    return [n for n in ("avg",) if n in names]


def test_in_words(found: Comparison) -> str | None:
    """The name of the significance test, per direction or per language of tagging."""
    if found.test is None:
        return None
    tagging = "f1" in found.metrics
    return (
        "approximate randomisation over sentences"
        if tagging
        else f"paired {found.test} over sentences"
    )


def notes(found: Comparison) -> list[str]:
    """Notes that explain the table."""
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
    if min(seeds) < LEAST_VALUES:
        lines.append(
            f"{'One seed is' if seeds[0] == 1 else 'Two seeds are'} too few for an interval, so "
            "such rows have none: which method is better cannot be told from them."
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
    lines.append(
        "Bold: the best of one model for all directions, where the rows differ as they are shown."
    )
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
    """Directions where so few sentences differ that a test says little."""
    few = [f"{row.name} {d} ({n})" for row in found.rows for d, n in row.few.items()]
    if not few:
        return []
    return [
        f"Fewer than {FEW} sentences differ from those of {found.baseline}, too few for a test to "
        f"say much: {', '.join(few)}."
    ]


def shown(found: Comparison, metric: Metric, names: list[str]) -> Table:
    """One metric of these columns; the overall best is underlined, as in Wang et al. 2021."""
    heads = ["", *(heading(found, name) for name in names)]
    rows = [[row.name, *_cells(found, row, metric, names)] for row in found.rows]
    return Table(heads, rows, NAMES[metric])


def costs(found: Comparison) -> Table:
    """What each row is, and its cost."""
    rows = [[row.name, ", ".join(map(str, row.seeds)), *_costs(row)] for row in found.rows]
    return Table(["", "seeds", *COSTS], rows, "size and cost")


def differences(found: Comparison, metric: Metric, names: list[str]) -> Table:
    """Each row minus the baseline, seed by seed; "!" where the interval excludes zero."""

    def text(cell: Mean | None) -> str:
        if cell is None:
            return ""
        outside = cell.known_half < abs(cell.mean)  # False without an interval
        return plus_minus(cell.mean, cell.known_half, DIGITS[metric], "+") + "!" * outside

    rows = {row.name: [found.difference(row, metric, name) for name in names] for row in found.rows}
    return Table(
        ["", *(heading(found, name) for name in names)],
        [[name, *map(text, cells)] for name, cells in rows.items() if any(cells)],
        f"{NAMES[metric]} minus {found.baseline}, on the same seeds",
    )


def terminal(
    found: Comparison, every_direction: bool = False, width: int = 120
) -> Iterator[RenderableType]:
    """All tables, for a terminal of ``width`` characters."""
    for make in (shown, differences):
        for metric in found.metrics:
            names = fitting(found, metric, every_direction, width, make)
            for table in make(found, metric, names).split(width - 1, 3):
                if table.rows:
                    yield table.terminal()
    yield costs(found).terminal()


def markdown(found: Comparison, every_direction: bool = False) -> str:
    """Every metric as a Markdown table, the differences, the costs, then the notes."""
    return tables.markdown(_whole(found, every_direction), notes(found))


def latex(found: Comparison, every_direction: bool = False) -> str:
    """Every metric as a LaTeX table, the differences, the costs, then the notes."""
    return tables.latex(_whole(found, every_direction), notes(found))


def _whole(found: Comparison, every_direction: bool) -> list[Table]:
    made = [
        make(found, metric, columns(found, metric, every_direction))
        for make in (shown, differences)
        for metric in found.metrics
    ]
    return [*(table for table in made if table.rows), costs(found)]


def _cells(found: Comparison, row: Row, metric: Metric, names: list[str]) -> list[str | Cell]:
    """The cells of a row: mean, interval, star; the best of a column in bold."""
    made: list[str | Cell] = []
    for column in names:
        mean = row.cells[metric].get(column)
        if mean is None:
            made.append("")
            continue
        made.append(
            Cell(
                plus_minus(mean.mean, mean.known_half, DIGITS[metric]),
                bold=not row.several_models and _is_best(found, row, metric, column),
                underlined=row.several_models and _is_best(found, row, metric, column),
                star=mean.star,
            )
        )
    return made


def _is_best(found: Comparison, row: Row, metric: Metric, column: str) -> bool:
    """Whether a row is the best of its kind as shown, and not all are the same.

    The kinds are one model for all directions, and any rows.
    """
    digits = DIGITS[metric]
    rows = [r for r in found.rows if column in r.cells[metric]]
    values = {
        round(r.cells[metric][column].mean, digits)
        for r in rows
        if row.several_models or not r.several_models
    }
    best = found.best(metric, column, several_models=row.several_models)
    own = row.cells[metric][column].mean
    return len(values) > 1 and round(own, digits) == round(best, digits)


def plus_minus(value: float, half: float, digits: int, sign: str = "") -> str:
    """A number and half the width of its interval, if known."""
    spread = "" if math.isnan(half) else f" ±{half:.{digits}f}"
    return decimal(value, digits, sign) + spread


def _costs(row: Row) -> list[str]:
    minutes, seconds = divmod(round(row.seconds), 60)
    return [
        f"{row.parameters / 1e6:.2f}M",
        f"{row.tokens / 1e6:.2f}M",
        f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}",
        "" if math.isnan(row.cost) else f"{row.cost:.2f}",
    ]
