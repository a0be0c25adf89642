"""The geometry of a run for reports and figures: measured, or recorded during training."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from gradvac.errors import GradientError, RunError
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.run.checkpoint import saved_models
from gradvac.experiment.run.tensor_file import tensor_shapes
from gradvac.experiment.training.measuring import Measurement, measured_folder
from gradvac.experiment.view.run_view import (
    FROM_ENGLISH,
    LANGUAGES,
    TO_ENGLISH,
    RunView,
    TaskView,
    by_family,
)
from gradvac.geometry.kinds import coarser
from gradvac.geometry.record import Frame, GramRecord, cosine
from gradvac.geometry.similarity import Similarity, mean_similarity, regrouped, windows

Measure = Callable[[np.ndarray], np.ndarray]
SIDES = {TO_ENGLISH: "any-en", FROM_ENGLISH: "en-any", LANGUAGES: "languages"}


class Missing(Exception):
    """Raised with what a run, or a set of runs, lacks for a figure."""


@dataclass(frozen=True)
class Geometry:
    """Gram matrices over the training of a run, at every granularity they can be summed to.

    Attributes:
        record: the file that holds them.
        measured: the measurement; None if the run recorded its own batches.
        granularities: granularity -> {recorded group: group}, finest first.
        steps: steps of the frames, ascending.
        seeds: the seeds this is the mean of, see `gradvac.experiment.view.seeds`; empty for one
            run.
    """

    record: GramRecord
    measured: Measurement | None
    granularities: Mapping[str, Mapping[str, str]]
    steps: tuple[int, ...]
    seeds: tuple[Geometry, ...] = ()

    @classmethod
    def measured_of(cls, folder: Path) -> Geometry | None:
        """The measurement of `gradvac geometry` in a folder, if there is one."""
        said = Measurement.read(folder)
        record = GramRecord(folder)
        first = next(iter(record), None)
        if said is None or first is None:
            return None
        try:
            groups = coarser(first.groups, said.granularity, said.parameters)
        except (KeyError, GradientError) as e:
            file = folder / "measured.json"
            raise RunError(f"{file}: does not describe the frames beside it: {e}") from e
        return cls(record, said, groups, tuple(sorted(record.steps())))

    @classmethod
    def recorded_of(cls, run: Path, recipe: BaseRecipe) -> Geometry | None:
        """What a run recorded during training, if it has two or more tasks."""
        record = GramRecord(run / "geometry")
        first = next((f for f in record if len(f.tasks) > 1), None)
        if first is None:
            return None
        groups = coarser(first.groups, recipe.method.granularity)
        return cls(record, None, groups, tuple(record.steps()))

    @classmethod
    def of(cls, run: Path, recipe: BaseRecipe, measured: Path | None = None) -> Geometry | None:
        """The best geometry available: measured on the same sentences, else recorded."""
        return cls.measured_of(measured or measured_folder(run)) or cls.recorded_of(run, recipe)

    @property
    def words(self) -> str:
        """Where the numbers come from, for a caption."""
        steps = f"{len(self.steps):,} " + ("step" if len(self.steps) == 1 else "steps")
        span = f"{steps} ({self.steps[0]:,} to {self.steps[-1]:,})"
        span += f" of {len(self.seeds)} seeds" if self.seeds else ""
        if self.measured is None:
            return f"on the training batches of {span}, dropout on"
        same = "the same" if self.measured.multiway else "each direction's own"
        return f"on {same} {self.measured.strings:,} sentences at {span}, dropout off"

    def frames(self, granularity: str) -> Iterator[Frame]:
        """The frames in order of step, summed to a granularity.

        A group of a later frame that is not in the first frame is kept unchanged.
        """
        mapping = self.granularities[granularity]
        runs = [g.record.in_order() for g in self.seeds or (self,)]
        for frame in heapq.merge(*runs, key=lambda f: f.step):
            known = {g: mapping.get(g, g) for g in frame.groups}
            yield from regrouped([frame], known)

    def mean(self, granularity: str, of: Measure = cosine) -> Similarity:
        """The mean over all frames."""
        key = (granularity, of)
        if key not in self._means:
            found = mean_similarity(self.frames(granularity), of)
            assert found is not None  # a Geometry has at least one frame
            self._means[key] = found
        return self._means[key]

    def over_time(
        self, granularity: str, count: int = 60, of: Measure = cosine
    ) -> list[Similarity]:
        """Means over at most ``count`` consecutive windows of training."""
        return windows(self.frames(granularity), self.steps, count, of)

    @cached_property
    def _means(self) -> dict[tuple[str, Measure], Similarity]:
        return {}


@dataclass(frozen=True)
class Subject:
    """A run and its geometry, or the mean of runs of several ``seeds``."""

    run: RunView
    geometry: Geometry | None
    seeds: tuple[Subject, ...] = ()

    def spread(self, number: Callable[[Subject], float | None]) -> tuple[float, float] | None:
        """The lowest and the highest ``number`` of the seeds; None for one run or no value."""
        values = []
        for seed in self.seeds:
            with suppress(Missing):
                values.append(number(seed))
        values = [v for v in values if v is not None]
        return (min(values), max(values)) if values else None

    @cached_property
    def tasks(self) -> list[TaskView]:
        """Directions by side and family."""
        return by_family(TaskView.of(name, info) for name, info in self.run.tasks.items())

    def of_side(self, side: str) -> list[TaskView]:
        """The tasks of one of `SIDES` with gradients, at least two; Missing otherwise."""
        said = self.geometry.measured if self.geometry else None
        seen = [t for t in self.tasks if said is None or t.name in said.tasks]
        found = [t for t in seen if t.side == side]
        if len(found) < 2:
            of = "languages as tasks" if side == LANGUAGES else f"directions {side}"
            raise Missing(f"a run with two or more {of}")
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
        """Number of values in the model."""
        files = list(saved_models(self.run.folder).values())
        best = self.run.folder / "best" / "model.safetensors"
        file = best if best.exists() else files[-1] if files else None
        if file is None:
            raise Missing("a checkpoint")
        return sum(map(prod, tensor_shapes(file).values()))

    @property
    def batch(self) -> int:
        """Target tokens per update; sentences per update for a tagging run."""
        return self.run.recipe.batch_size


def among(similarity: Similarity, tasks: Sequence[TaskView]) -> Similarity:
    """Only these tasks, in this order; Missing if one never occurred."""
    found = similarity.ordered([t.name for t in tasks])
    if len(found.tasks) < len(tasks):
        absent = [t.short for t in tasks if t.name not in found.tasks]
        raise Missing(f"gradients of {', '.join(absent)}")
    return found


def subjects_of(views: Sequence[RunView], measured: Path | None = None) -> list[Subject]:
    """Runs with their best geometry; ``measured`` is the measurement if there is only one run."""
    if measured is not None and len(views) != 1:
        raise RunError(f"{measured} belongs to one run; {len(views)} are given")
    return [Subject(view, Geometry.of(view.folder, view.recipe, measured)) for view in views]
