"""What every figure has: a subject, the picture, its numbers, or what is missing to draw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from safetensors import safe_open

from gradvac.errors import RunError
from gradvac.experiment.checkpoint import saved_models
from gradvac.experiment.geometry_view import Geometry
from gradvac.experiment.report.runs import FROM_ENGLISH, TO_ENGLISH, RunView, TaskView, by_family
from gradvac.geometry.panels import Panel
from gradvac.geometry.similarity import Similarity

SIDES = {TO_ENGLISH: "any-en", FROM_ENGLISH: "en-any"}


class Missing(Exception):
    """Says what a run, or a set of runs, lacks for a figure."""


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: of its files.
        caption: what is shown, and on what.
        figure: the picture.
        header: names of the columns of its numbers.
        rows: its numbers.
    """

    name: str
    caption: str
    figure: Figure
    header: tuple[str, ...]
    rows: Sequence[tuple]


@dataclass(frozen=True)
class Subject:
    """A run and its geometry."""

    run: RunView
    geometry: Geometry | None

    @cached_property
    def tasks(self) -> list[TaskView]:
        """Directions by side and family."""
        return by_family(TaskView.of(name, info) for name, info in self.run.tasks.items())

    def of_side(self, side: str) -> list[TaskView]:
        """The directions of one side of English, at least two; Missing otherwise."""
        found = [t for t in self.tasks if t.side == side]
        if len(found) < 2:
            raise Missing(f"a run with two or more directions {side}")
        return found

    def at(self, granularity: str) -> Geometry:
        """The geometry, if it has Gram matrices at this granularity; Missing otherwise."""
        if self.geometry is None:
            raise Missing("Gram matrices: gradvac geometry RUN measures them")
        if granularity not in self.geometry.granularities:
            there = next(iter(self.geometry.granularities))
            raise Missing(f"Gram matrices at {granularity}; there are those at {there}")
        return self.geometry

    def mean_of(self, granularity: str, group: str, tasks: Sequence[TaskView]) -> np.ndarray:
        """Mean cosines ``[K, K]`` of one group between directions."""
        found = self.at(granularity).mean(granularity)
        if group not in found.groups:
            raise Missing(f"a parameter group {group!r}; there are {', '.join(found.groups)}")
        return among(found, tasks).cosine[found.groups.index(group)]

    @property
    def parameters(self) -> int:
        """Numbers in the model."""
        files = list(saved_models(self.run.folder).values())
        best = self.run.folder / "best" / "model.safetensors"
        file = best if best.exists() else files[-1] if files else None
        if file is None:
            raise Missing("a checkpoint")
        with safe_open(file, "np") as tensors:
            return sum(prod(tensors.get_slice(k).get_shape()) for k in tensors.keys())  # noqa: SIM118

    @property
    def batch(self) -> int:
        """Target tokens of an update."""
        return self.run.recipe.batches.tokens * self.run.recipe.batches.accumulate


Drawer = Callable[[Sequence[Subject]], list[Picture]]
"""Draws a figure of the subjects given, one picture or several; raises Missing."""


def among(similarity: Similarity, tasks: Sequence[TaskView]) -> Similarity:
    """Only these tasks, in this order; Missing when one was never seen."""
    found = similarity.ordered([t.name for t in tasks])
    if len(found.tasks) < len(tasks):
        absent = [t.short for t in tasks if t.name not in found.tasks]
        raise Missing(f"gradients of {', '.join(absent)}")
    return found


def each(draw: Callable[[Subject], list[Picture]]) -> Drawer:
    """Draw a figure of every subject that can give it; Missing if none can."""

    def drawer(subjects: Sequence[Subject]) -> list[Picture]:
        pictures: list[Picture] = []
        reasons: list[str] = []
        for subject in subjects:
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
            pictures += found
        if not pictures:
            raise Missing("; ".join(dict.fromkeys(reasons)))
        return pictures

    return drawer


def pair_rows(
    values: np.ndarray, tasks: Sequence[TaskView], *more: object
) -> list[tuple[object, ...]]:
    """Rows of numbers of a heat map: what precedes them, two tasks and their families, value."""
    return [
        (*more, a.name, b.name, a.family, b.family, float(values[i, j]))
        for i, a in enumerate(tasks)
        for j, b in enumerate(tasks)
        if i < j
    ]


PAIRS = ("task", "other", "family", "other_family", "cosine")


def line_rows(panels: Sequence[Panel]) -> list[tuple]:
    """Rows of numbers of curves: panel, line, x, y."""
    return [
        (p.title, line.name, x, y)
        for p in panels
        for line in p.lines
        for x, y in zip(line.x, line.y, strict=True)
    ]


LINES = ("panel", "line", "x", "y")


def subjects_of(views: Sequence[RunView], measured: Path | None = None) -> list[Subject]:
    """Runs with the best geometry they have; ``measured`` is that of the only run."""
    if measured is not None and len(views) != 1:
        raise RunError(f"{measured} belongs to one run; {len(views)} are given")
    return [Subject(view, Geometry.of(view.folder, view.recipe, measured)) for view in views]
