"""Sections of a report on scores: averages, and direction by direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from gradvac.experiment.report.runs import FROM_ENGLISH, TO_ENGLISH, RunView, TaskView
from gradvac.geometry.plots import dots

METRICS = (("chrf", "chrF++", 1), ("bleu", "BLEU", 1), ("nll", "NLL per token", 3))
LEVELS = ("high", "medium", "low")
SIDES = {"any-en": TO_ENGLISH, "en-any": FROM_ENGLISH}
Row = tuple[str, int | None, Mapping[str, Any] | None]
"""A row of scores: name, number of its colour (None: the starting model), scores."""

Key = tuple[str, str, str]
"""Which average: side of English, kind of subset (all, level, family), subset."""


def averages_section(rows: Sequence[Row], views: Sequence[RunView]) -> str:
    """The table of averages by side and level, and the one by family below it."""
    unsaid = "".join(
        missing(f"{view.name} has no scores yet: gradvac evaluate writes them.")
        for view in views
        if view.scores is None
    )
    averages = [
        (name, n, {(a["side"], a["kind"], a["subset"]): a for a in scores["averages"]})
        for name, n, scores in rows
        if scores
    ]
    found: list[Key] = list(dict.fromkeys(key for *_, one in averages for key in one))
    sides = {k: SIDES.get(k[0], k[0]) for k in found if k[1] == "all" and k[0] != "all"}
    levels: list[Key] = [("all", "level", level) for level in LEVELS]
    first = sides | {k: k[2] for k in levels if k in found}
    families = {k: k[2] for k in found if k[0] == "all" and k[1] == "family"}
    if not first:
        return unsaid
    caption = (
        "Averages over directions, by side and by resource level. Higher is better, but for NLL "
        "(natural logarithm) lower is."
    )
    markup = _average_table(averages, first, caption) + _coverage(rows)
    if families:
        caption = "Averages over directions, by the family of the language that is not English."
        inner = _average_table(averages, families, caption)
        markup += element("details", element("summary", "Averages by language family") + inner)
    return markup + unsaid


def _coverage(rows: Sequence[Row]) -> str:
    """A warning when averages are over different directions and so cannot be compared."""
    scored = {name: set(scores["directions"]) for name, _, scores in rows if scores}
    every = set().union(*scored.values())
    return "".join(
        paragraph(
            f"{name}: averages over the {len(own)} of {len(every)} directions it was scored in; "
            "compare it with the other rows direction by direction only."
        )
        for name, own in scored.items()
        if own != every
    )


def _average_table(
    rows: Sequence[tuple[str, int | None, Mapping[Key, Any]]],
    columns: Mapping[Key, str],
    caption: str,
) -> str:
    def value(averages: Mapping[Key, Any], key: Key, metric: str) -> float | None:
        return averages.get(key, {}).get(metric)

    shown = [
        m for m in METRICS if any(value(a, k, m[0]) is not None for *_, a in rows for k in columns)
    ]
    top = element("th", "", rowspan=2, scope="col")
    top += "".join(
        element("th", escape(name), colspan=len(columns), scope="colgroup", class_="edge")
        for _, name, _ in shown
    )
    labels = "".join(
        element("th", escape(name), scope="col", class_="number" if n else "number edge")
        for _ in shown
        for n, name in enumerate(columns.values())
    )
    body = [
        element("th", series(name, n), scope="row")
        + "".join(number(value(averages, k, m), digits) for m, _, digits in shown for k in columns)
        for name, n, averages in rows
    ]
    return table([top, labels], body, caption)


def directions_section(rows: Sequence[Row], tasks: Sequence[TaskView], pictures: Pictures) -> str:
    """Scores of every direction in a table, chrF++ in a picture."""
    scored = [(name, n, scores["directions"]) for name, n, scores in rows if scores]
    sizes = [d["sentences"] for *_, each in scored for d in each.values() if "sentences" in d]
    caption = "Directions, ordered by side and family. Pairs: sentence pairs of training text."
    if sizes:
        caption += f" Scored on {_between(sizes)} sentences each."
    markup = table(_direction_head(scored), [_direction(t, scored) for t in tasks], caption)
    if scored:
        points = {
            name: (-1 if n is None else n, [_score(each, t, "chrf", np.nan) for t in tasks])
            for name, n, each in scored
        }
        figure = dots([t.short for t in tasks], points, "chrF++")
        markup += pictures(figure, "chrF++ of every direction.")
    return markup


def _direction_head(scored: Sequence[tuple[str, int | None, Mapping[str, Any]]]) -> list[str]:
    """One row of headings, or two where scores are grouped by metric."""
    deep = 2 if scored else None
    metrics = METRICS[:2] if scored else ()
    top = element("th", "Direction", rowspan=deep, scope="col")
    for _, name, _ in metrics:
        top += element("th", name, colspan=len(scored), scope="colgroup", class_="edge")
    for name, kind in (("Pairs", "number edge"), ("Level", None), ("Family", None)):
        top += element("th", name, rowspan=deep, scope="col", class_=kind)
    below = [element("th", series(name, n), scope="col", class_="number") for name, n, _ in scored]
    return [top, "".join(below) * len(metrics)] if scored else [top]


def _direction(t: TaskView, scored: Sequence[tuple[str, int | None, Mapping[str, Any]]]) -> str:
    """One row of the table."""
    code = f" {element('code', escape(t.name))}" if t.label != t.name else ""
    row = element("th", escape(t.label) + code, scope="row")
    for metric, _, digits in METRICS[:2]:
        row += "".join(number(_score(each, t, metric), digits) for *_, each in scored)
    pairs = "\N{EN DASH}" if t.pairs is None else f"{t.pairs:,}"
    row += element("td", pairs, class_="number edge")
    return row + element("td", escape(t.level)) + element("td", escape(t.family))


def _score(each: Mapping[str, Any], t: TaskView, metric: str, default: Any = None) -> Any:
    return each.get(t.name, {}).get(metric, default)


def _between(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
