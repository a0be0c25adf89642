"""The interface of a kind of job for the commands: translation, sequence labelling, encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple

from rich.table import Table

from gradvac.engine.ranks.group import Ranks
from gradvac.experiment.recipe.kinds import find_kind
from gradvac.experiment.recipe.load import R
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.run.folder import TaskInfo, any_recipe
from gradvac.experiment.training.job import Job, Prepared, RankJob, V

Say = Callable[[str], None]


class Scored(NamedTuple):
    """The output of `gradvac evaluate` for a run: a table, and lines below it."""

    table: Table
    notes: Sequence[str] = ()


class Kind(ABC, Generic[R, V]):
    """A kind of job. Each has one object, which `kind_of` returns.

    Attributes:
        recipe: the class that validates recipes of the kind.
        parts: files and folders of a run with its text, which runs may share.
        on_ranks: whether it can train under torchrun.
        samples: whether its scored runs have translations for reports.
    """

    recipe: type[R]
    parts: ClassVar[Sequence[str]]
    on_ranks: ClassVar[bool] = False
    samples: ClassVar[bool] = False

    # -- text -----------------------------------------------------------------------------------

    @abstractmethod
    def prepare_text(self, recipe: R, folder: Path, say: Say) -> dict[str, TaskInfo]:
        """Read, check and encode all text of a recipe into the `parts` of a run's folder.

        Returns the data of each task. ``say`` prints lines for the user.
        """

    @abstractmethod
    def text_of(self, recipe: R) -> list[Any]:
        """The parts of a recipe that its text depends on, as JSON."""

    @abstractmethod
    def open(self, folder: Path) -> Prepared[R, V]:
        """The text of a prepared run; RunError says what is missing, damaged or wrong."""

    def in_store(self, recipe: R, store: Path, say: Say) -> R:
        """The recipe, with its meaning in the version that prepared the text in ``store``."""
        return recipe

    def with_text(self, recipe: R, text: Path, tasks: Mapping[str, TaskInfo]) -> R:
        """The recipe with values that depend on the prepared text in the folder ``text``."""
        return recipe

    def resumed(self, recipe: R, folder: Path) -> R:
        """The recipe, with keys that it does not set taken from the run that it resumes."""
        return recipe

    # -- training -------------------------------------------------------------------------------

    @abstractmethod
    def job(self, prepared: Prepared[R, V]) -> Job[Any]:
        """The job of a prepared run, ready for the trainer."""

    def rank_job(self, prepared: Prepared[R, V], ranks: Ranks) -> RankJob[Any]:
        """The part of the job on one of several ranks; for kinds with `on_ranks`."""
        raise NotImplementedError

    # -- after training -------------------------------------------------------------------------

    @abstractmethod
    def score(
        self, folder: Path, options: Mapping[str, Any], say: Say, ranks: Ranks | None = None
    ) -> Scored | None:
        """Score a run on a test set and write ``scores.json``; None on a rank without work.

        ``options`` are those of `gradvac evaluate`, None if not given, with ``test`` the name of
        one set, None for the first; RunError for an option of another kind, and for a run without
        such a test set.
        """

    @abstractmethod
    def measure(
        self,
        run: Path,
        out: Path | None = None,
        rows: Path | None = None,
        directions: Sequence[str] | None = None,
        **options: Any,
    ) -> Path:
        """Measure the gradients of all tasks at the checkpoints of a run; returns the folder.

        ``options`` are those of `gradvac.experiment.training.measuring.measure_text`. RunError for
        ``rows`` or ``directions`` if the kind has none.
        """

    def scripts(self, folder: Path, codes: Sequence[str]) -> dict[str, str]:
        """The script of each language of a run, found from its stored text."""
        return {}


def kind_of(recipe: BaseRecipe) -> Kind[Any, Any]:
    """The kind of a recipe."""
    kind = find_kind(recipe.kind)
    assert isinstance(kind, Kind)
    return kind


def kind_of_run(folder: Path) -> Kind[Any, Any]:
    """The kind of a run; RunError if the folder is not a run."""
    return kind_of(any_recipe(folder))


def score_run(
    folder: Path, options: Mapping[str, Any], say: Say, ranks: Ranks | None = None
) -> Iterator[Scored]:
    """Score a run on every test set, or on those named by the option ``test``; see `Kind.score`."""
    recipe = any_recipe(folder)
    named = options.get("test") or list(filter(None, recipe.test_sets))
    for test in dict.fromkeys(named or [None]):
        if scored := kind_of(recipe).score(folder, {**options, "test": test}, say, ranks):
            yield scored


def job_of(folder: Path) -> Job[Any]:
    """The job of a prepared run folder, ready for the trainer."""
    kind = kind_of_run(folder)
    return kind.job(kind.open(folder))
