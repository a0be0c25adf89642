"""What every figure has: the picture, a caption, and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gradvac.experiment.view.geometry import Missing, Subject
from gradvac.experiment.view.run_view import TaskView
from gradvac.geometry.panels import Panel


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: name of its files.
        caption: what is shown, and on which data.
        figure: the picture.
        header: names of the columns of its numbers.
        rows: its numbers.
    """

    name: str
    caption: str
    figure: Figure
    header: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]


Drawer = Callable[[Sequence[Subject]], list[Picture]]
"""Draws a figure of the subjects given, one picture or several; raises Missing."""


def each(draw: Callable[[Subject], list[Picture]], *, once: bool = False) -> Drawer:
    """Draw a figure of every subject that has the data; Missing if none has.

    If there are runs of three or more languages, runs of one or two are only for comparison and are
    not drawn. ``once``: skip a subject whose numbers equal those of an earlier one.
    """

    def drawer(subjects: Sequence[Subject]) -> list[Picture]:
        pictures: list[Picture] = []
        reasons: list[str] = []
        large = [s for s in subjects if len({t.partner for t in s.tasks}) > 2]
        for subject in large or subjects:
            try:
                found = draw(subject)
            except Missing as e:
                reasons.append(str(e))
                continue
            if len(subjects) > 1:
                tail = "-" + subject.run.name.replace("/", "-")
                named = [{**vars(p), "name": p.name + tail} for p in found]
                words = f"{subject.run.name}: "
                found = [Picture(**{**p, "caption": words + p["caption"]}) for p in named]
            drawn = [p.rows for p in pictures] if once else []
            pictures += [p for p in found if p.rows not in drawn]
        if not pictures:
            raise Missing("; ".join(dict.fromkeys(reasons)))
        return pictures

    return drawer


def pair_rows(
    values: np.ndarray, tasks: Sequence[TaskView], *more: object
) -> list[tuple[object, ...]]:
    """Rows of numbers of a heat map: leading columns, two tasks and their families, value."""
    return [
        (*more, a.name, b.name, a.family, b.family, float(values[i, j]))
        for i, a in enumerate(tasks)
        for j, b in enumerate(tasks)
        if i < j
    ]


PAIRS = ("task", "other", "family", "other_family", "cosine")


def line_rows(panels: Sequence[Panel]) -> list[tuple[Any, ...]]:
    """Rows of numbers of curves: panel, line, x, y."""
    return [
        (p.title, line.name, x, y)
        for p in panels
        for line in p.lines
        for x, y in zip(line.x, line.y, strict=True)
    ]


LINES = ("panel", "line", "x", "y")
