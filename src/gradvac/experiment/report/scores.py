"""Sections of a report on scores: averages, and every direction."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence, Set
from html import escape
from typing import Any

import numpy as np

from gradvac.experiment.report.markup import (
    Pictures,
    element,
    missing,
    number,
    paragraph,
    series,
    table,
)
from gradvac.experiment.view.run_view import RunView, TaskView
from gradvac.geometry.plots import dots

TRANSLATION = (("chrf", "chrF++", 1), ("bleu", "BLEU", 1))
TAGGING = (("f1", "F1", 1), ("accuracy", "accuracy, %", 1))
METRICS = (*TRANSLATION, *TAGGING, ("nll", "NLL per token", 3))
LEVELS = ("high", "medium", "low")
Row = tuple[str, int | None, Mapping[str, Any] | None]
"""A row of scores: name, number of its colour (None: the starting model), scores."""

_Scored = Sequence[tuple[str, int | None, Mapping[str, Mapping[str, Any]]]]
"""Rows that have scores: name, number of the colour, direction -> metric -> value."""


def averages_section(
    rows: Sequence[Row], tasks: Sequence[TaskView], views: Sequence[RunView]
) -> str:
    """The table of averages by side and level, and the one by family below it."""
    unsaid = "".join(
        missing(
            f"{view.name} has no scores yet: gradvac evaluate writes them."
            if view.scorable
            else f"{view.name} has no scores: its recipe names no test text."
        )
        for view in views
        if view.scores is None
    )
    scored = [(name, n, scores["directions"]) for name, n, scores in rows if scores]
    if not scored:
        return unsaid
    every = {name for *_, each in scored for name in each}
    levels: dict[str, list[str]] = {level: [] for level in LEVELS}
    sides: dict[str, list[str]] = {}
    families: dict[str, list[str]] = {}
    for t in tasks:
        if is_zero_shot(scored, t.name):
            sides.setdefault("zero-shot", []).append(t.name)
        elif t.name in every:
            sides.setdefault(t.side or "other directions", []).append(t.name)
            families.setdefault(t.family, []).append(t.name)
            levels.setdefault(t.level, []).append(t.name)
    first = sides | {level: names for level, names in levels.items() if level and names}
    caption = (
        "Averages over directions, by side and by resource level. Higher is better, but for NLL "
        "(natural logarithm) lower is."
    )
    markup = _average_table(scored, first, caption) + _coverage(scored, every)
    caption = "Averages over directions, by the family of the language that is not English."
    inner = _average_table(scored, families, caption)
    markup += element("details", element("summary", "Averages by language family") + inner)
    return markup + unsaid


def is_zero_shot(scored: _Scored, name: str) -> bool:
    """Whether a direction was scored but not trained."""
    return any(each.get(name, {}).get("zero_shot") for *_, each in scored)


def _coverage(scored: _Scored, every: Set[str]) -> str:
    """A warning when averages are over different directions and so cannot be compared."""
    return "".join(
        paragraph(
            f"{name}: averages over the {len(own)} of {len(every)} directions it was scored in; "
            "compare it with the other rows direction by direction only."
        )
        for name, _, own in scored
        if own.keys() != every
    )


def _average_table(scored: _Scored, columns: Mapping[str, Sequence[str]], caption: str) -> str:
    """A table with a column for every metric and set of directions, named by ``columns``."""
    cells = [(each, names) for *_, each in scored for names in columns.values()]
    shown = [m for m in METRICS if any(_average(*cell, m[0]) is not None for cell in cells)]
    top = element("th", "", rowspan=2, scope="col")
    top += "".join(
        element("th", escape(name), colspan=len(columns), scope="colgroup", class_="edge")
        for _, name, _ in shown
    )
    labels = "".join(
        element("th", escape(name), scope="col", class_="number" if n else "number edge")
        for _ in shown
        for n, name in enumerate(columns)
    )
    body = [
        element("th", series(name, n), scope="row")
        + "".join(
            number(_average(each, names, metric), digits)
            for metric, _, digits in shown
            for names in columns.values()
        )
        for name, n, each in scored
    ]
    return table([top, labels], body, caption)


def _average(
    each: Mapping[str, Mapping[str, Any]], names: Sequence[str], metric: str
) -> float | None:
    """Unweighted mean over the directions that have the metric; None if none has it."""
    found = [each.get(name, {}).get(metric) for name in names]
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if known else None


def directions_section(rows: Sequence[Row], tasks: Sequence[TaskView], pictures: Pictures) -> str:
    """Scores of every direction in a table, chrF++ (or the F1 of tagging) in a picture."""
    scored = [(name, n, scores["directions"]) for name, n, scores in rows if scores]
    metrics = metrics_of(scored)
    main, title, _ = metrics[0]
    sizes = [d["sentences"] for *_, each in scored for d in each.values() if "sentences" in d]
    caption = "Directions, ordered by side and family. Pairs: sentence pairs of training text."
    if sizes:
        caption += f" Scored on {_between(sizes)} sentences each."
    body = [_direction(t, scored, metrics) for t in tasks]
    markup = table(_direction_head(scored, metrics), body, caption)
    if scored:
        points = {
            name: (-1 if n is None else n, [_score(each, t, main, np.nan) for t in tasks])
            for name, n, each in scored
        }
        figure = dots([t.short for t in tasks], points, title)
        markup += pictures(figure, f"{title} of every direction.")
    return markup


def metrics_of(scored: _Scored) -> tuple[tuple[str, str, int], ...]:
    """The metrics of the directions: key, name and digits, the main one first."""
    tagged = any("f1" in own for *_, each in scored for own in each.values())
    return TAGGING if tagged else TRANSLATION


def _direction_head(scored: _Scored, metrics: tuple[tuple[str, str, int], ...]) -> list[str]:
    """One row of headings, or two where scores are grouped by metric."""
    deep = 2 if scored else None
    metrics = metrics if scored else ()
    top = element("th", "Direction", rowspan=deep, scope="col")
    for _, name, _ in metrics:
        top += element("th", name, colspan=len(scored), scope="colgroup", class_="edge")
    for name, kind in (("Pairs", "number edge"), ("Level", None), ("Family", None)):
        top += element("th", name, rowspan=deep, scope="col", class_=kind)
    below = [element("th", series(name, n), scope="col", class_="number") for name, n, _ in scored]
    return [top, "".join(below) * len(metrics)] if scored else [top]


def _direction(t: TaskView, scored: _Scored, metrics: tuple[tuple[str, str, int], ...]) -> str:
    """One row of the table."""
    code = f" {element('code', escape(t.name))}" if t.label != t.name else ""
    row = element("th", escape(t.label) + code, scope="row")
    for metric, _, digits in metrics:
        row += "".join(number(_score(each, t, metric), digits) for *_, each in scored)
    pairs = "\N{EN DASH}" if t.pairs is None else f"{t.pairs:,}"
    row += element("td", pairs, class_="number edge")
    level = "zero-shot" if is_zero_shot(scored, t.name) else t.level
    return row + element("td", escape(level)) + element("td", escape(t.family))


def _score(each: Mapping[str, Any], t: TaskView, metric: str, default: Any = None) -> Any:
    return each.get(t.name, {}).get(metric, default)


def _between(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
