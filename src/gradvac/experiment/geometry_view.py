"""The geometry of a run as reports and figures read it: measured, or recorded while training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gradvac.experiment.geometry_run import Measurement, measured_folder
from gradvac.experiment.recipe import Recipe
from gradvac.geometry.kinds import coarser
from gradvac.geometry.record import Frame, GramRecord, cosine
from gradvac.geometry.similarity import Similarity, mean_similarity, regrouped, windows

Measure = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Geometry:
    """Gram matrices over the training of a run, at every granularity they can be summed to.

    Attributes:
        record: where they are.
        measured: what was measured; None for what the run recorded of its own batches.
        granularities: granularity -> {recorded group: group}, finest first.
        steps: of the frames, ascending.
    """

    record: GramRecord
    measured: Measurement | None
    granularities: Mapping[str, Mapping[str, str]]
    steps: tuple[int, ...]

    @classmethod
    def measured_of(cls, folder: Path) -> Geometry | None:
        """What `gradvac geometry` left in a folder, if anything."""
        said = Measurement.read(folder)
        record = GramRecord(folder)
        first = next(iter(record), None)
        if said is None or first is None:
            return None
        shapes = said.parameters
        groups = coarser(first.groups, said.granularity, shapes)
        return cls(record, said, groups, tuple(sorted(record.steps())))

    @classmethod
    def recorded_of(cls, run: Path, recipe: Recipe) -> Geometry | None:
        """What a run recorded while training, if anything of two or more tasks."""
        record = GramRecord(run / "geometry")
        first = next((f for f in record if len(f.tasks) > 1), None)
        if first is None:
            return None
        groups = coarser(first.groups, recipe.method.granularity)
        return cls(record, None, groups, tuple(record.steps()))

    @classmethod
    def of(cls, run: Path, recipe: Recipe, measured: Path | None = None) -> Geometry | None:
        """The best there is: measured on the same sentences, else recorded."""
        return cls.measured_of(measured or measured_folder(run)) or cls.recorded_of(run, recipe)

    @property
    def words(self) -> str:
        """Where the numbers come from, for a caption."""
        steps = f"{len(self.steps):,} " + ("step" if len(self.steps) == 1 else "steps")
        span = f"{steps} ({self.steps[0]:,} to {self.steps[-1]:,})"
        if self.measured is None:
            return f"on the training batches of {span}, dropout on"
        same = "the same" if self.measured.multiway else "each direction's own"
        return f"on {same} {self.measured.strings:,} sentences at {span}, dropout off"

    def frames(self, granularity: str) -> Iterator[Frame]:
        """The frames by step, summed to a granularity.

        A group of a later frame that the first did not have is left as it is.
        """
        mapping = self.granularities[granularity]
        for frame in self.record.in_order():
            known = {g: mapping.get(g, g) for g in frame.groups}
            yield from regrouped([frame], known)

    def mean(self, granularity: str, of: Measure = cosine) -> Similarity:
        """The mean over all frames."""
        key = (granularity, of)
        if key not in self._means:
            found = mean_similarity(self.frames(granularity), of)
            assert found is not None  # there is a frame, or there were no Geometry
            self._means[key] = found
        return self._means[key]

    def over_time(
        self, granularity: str, count: int = 60, of: Measure = cosine
    ) -> list[Similarity]:
        """Means over at most ``count`` consecutive stretches of training."""
        return windows(self.frames(granularity), self.steps, count, of)

    @cached_property
    def _means(self) -> dict[tuple[str, Measure], Similarity]:
        return {}
