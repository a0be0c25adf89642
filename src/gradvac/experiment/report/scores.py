"""Sections of a report on scores: averages, and every direction."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
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
from gradvac.geometry.statistics import LEAST_VALUES, half_width

TRANSLATION = (("chrf", "chrF++", 1), ("bleu", "BLEU", 1))
TAGGING = (("f1", "F1", 1), ("accuracy", "accuracy, %", 1))
METRICS = (*TRANSLATION, *TAGGING, ("nll", "NLL per token", 3))
LEVELS = ("high", "medium", "low")
Metric = tuple[str, str, int]
"""Key, name and digits of a metric."""


@dataclass(frozen=True)
class Row:
    """The scores of the seeds of a method, or of one run.

    Attributes:
        name: name of the runs.
        colour: number of its colour; None for the starting model.
        scores: seed -> direction -> metric -> value, of the seeds that are scored.
    """

    name: str
    colour: int | None
    scores: Mapping[int, Mapping[str, Mapping[str, Any]]]

    def values(self, names: Sequence[str], metric: str) -> dict[int, float]:
        """By seed, the unweighted mean over those of the directions that have the metric."""
        found = {}
        for seed, each in self.scores.items():
            known = [each[n][metric] for n in names if each.get(n, {}).get(metric) is not None]
            if known:
                found[seed] = statistics.fmean(known)
        return found

    @property
    def directions(self) -> set[str]:
        """The directions that any seed was scored in."""
        return {name for each in self.scores.values() for name in each}

    @property
    def each_seed(self) -> list[Row]:
        """One row for each seed, if there are several."""
        if len(self.scores) < 2:
            return []
        rows = self.scores.items()
        return [Row(f"{self.name}, seed {n}", self.colour, {n: own}) for n, own in rows]


def averages_section(rows: Sequence[Row], tasks: Sequence[TaskView]) -> str:
    """Tables of averages by side and level; below them by family, and of each seed."""
    scored = [row for row in rows if row.scores]
    if not scored:
        return ""
    every = set[str]().union(*(row.directions for row in scored))
    first, families = _columns(scored, tasks, every)
    seeds = max(len(row.scores) for row in scored)
    caption = "Averages over directions, by side and by resource level. "
    if any(t.level for t in tasks):
        caption += "Levels are relative to the largest direction where data.levels sets none. "
    if seeds >= LEAST_VALUES:
        caption += "Mean over seeds, with half the width of its 95 % interval (Student's t). "
    elif seeds == 2:
        caption += "Mean of two seeds, too few for an interval. "
    markup = _tables(scored, first, caption) + _coverage(scored, every)
    caption = "Averages over directions, by the family of the language that is not English."
    inner = _tables(scored, families, caption)
    markup += element("details", element("summary", "Averages by language family") + inner)
    if seeds > 1:
        single = [one for row in scored for one in row.each_seed or [row]]
        inner = _tables(single, first, "The same of each seed.")
        markup += element("details", element("summary", "Each seed") + inner)
    return markup


def unscored(views: Sequence[RunView]) -> str:
    """A line for each run without scores."""
    return "".join(
        missing(
            f"{view.name} has no scores yet: gradvac evaluate writes them."
            if view.scorable
            else f"{view.name} has no scores: its recipe names no test text."
        )
        for view in views
        if view.scores is None
    )


def _columns(
    scored: Sequence[Row], tasks: Sequence[TaskView], every: Set[str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Directions by side and level, and by family."""
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
    return first, families


def is_zero_shot(scored: Sequence[Row], name: str) -> bool:
    """Whether a direction was scored but not trained."""
    return any(
        each.get(name, {}).get("zero_shot") for row in scored for each in row.scores.values()
    )


def _coverage(scored: Sequence[Row], every: Set[str]) -> str:
    """A warning when averages are over different directions and so cannot be compared."""
    return "".join(
        paragraph(
            f"{row.name}: averages over the {len(row.directions)} of {len(every)} directions it "
            "was scored in; compare it with the other rows direction by direction only."
        )
        for row in scored
        if row.directions != every
    )


def _tables(scored: Sequence[Row], columns: Mapping[str, Sequence[str]], caption: str) -> str:
    """A table for every metric, with a column for every set of directions."""
    everywhere = [name for names in columns.values() for name in names]
    shown = [m for m in METRICS if any(row.values(everywhere, m[0]) for row in scored)]
    made = [_average_table(scored, columns, metric) for metric in shown]
    return paragraph(caption, class_="caption") + element("div", "".join(made), class_="tables")


def _average_table(
    scored: Sequence[Row], columns: Mapping[str, Sequence[str]], metric: Metric
) -> str:
    key, name, digits = metric
    head = element("th", escape(name), scope="col") + "".join(
        element("th", escape(column), scope="col", class_="number") for column in columns
    )
    body = [
        element("th", series(row.name, row.colour), scope="row")
        + "".join(_cell(row.values(names, key), digits) for names in columns.values())
        for row in scored
    ]
    better = "lower is better" if key == "nll" else "higher is better"
    return element("div", table([head], body, f"{name}: {better}"))


def _cell(values: Mapping[int, float], digits: int) -> str:
    """The mean over seeds, with its interval if there are enough of them."""
    if not values:
        return number(None)
    found = list(values.values())
    half = half_width(found) if len(found) >= LEAST_VALUES else None
    return number(statistics.fmean(found), digits, half)


def directions_section(rows: Sequence[Row], tasks: Sequence[TaskView], pictures: Pictures) -> str:
    """Scores of every direction in a table for each metric, the main one in a picture."""
    scored = [row for row in rows if row.scores]
    main, *others = metrics_of(scored)
    sizes = [
        each[name]["sentences"]
        for row in scored
        for each in row.scores.values()
        for name in each
        if "sentences" in each[name]
    ]
    caption = "Directions, ordered by side and family. Pairs: sentence pairs of training text."
    if sizes:
        caption += f" Scored on {_between(sizes)} sentences each."
    markup = paragraph(caption, class_="caption") + _direction_table(scored, tasks, main)
    for metric in others if scored else ():
        inner = _direction_table(scored, tasks, metric)
        markup += element("details", element("summary", escape(metric[1])) + inner)
    if scored:
        mean = lambda row, t: statistics.fmean(row.values([t.name], main[0]).values() or [np.nan])
        points = {
            row.name: (-1 if row.colour is None else row.colour, [mean(row, t) for t in tasks])
            for row in scored
        }
        figure = dots([t.short for t in tasks], points, main[1])
        markup += pictures(figure, f"{main[1]} of every direction.")
    return markup


def metrics_of(scored: Sequence[Row]) -> tuple[Metric, ...]:
    """The metrics of the directions, the main one first."""
    each = [own for row in scored for one in row.scores.values() for own in one.values()]
    return TAGGING if any("f1" in own for own in each) else TRANSLATION


def _direction_table(scored: Sequence[Row], tasks: Sequence[TaskView], metric: Metric) -> str:
    names = [(series(row.name, row.colour), "number") for row in scored]
    names += [("Pairs", "number"), ("Level", None), ("Family", None)]
    head = element("th", "Direction", scope="col")
    head += "".join(element("th", name, scope="col", class_=kind) for name, kind in names)
    return table([head], [_direction(t, scored, metric) for t in tasks], metric[1])


def _direction(t: TaskView, scored: Sequence[Row], metric: Metric) -> str:
    """One row of the table."""
    code = f" {element('code', escape(t.name))}" if t.label != t.name else ""
    row = element("th", escape(t.label) + code, scope="row")
    row += "".join(_cell(one.values([t.name], metric[0]), metric[2]) for one in scored)
    pairs = "\N{EN DASH}" if t.pairs is None else f"{t.pairs:,}"
    row += element("td", pairs, class_="number")
    level = "zero-shot" if is_zero_shot(scored, t.name) else t.level
    return row + element("td", escape(level)) + element("td", escape(t.family))


def _between(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
