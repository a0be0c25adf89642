"""A run for reports and figures: everything in its folder, each part if present."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.recipe.load import parse_recipe
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.run.below import all_runs
from gradvac.experiment.run.contents import Translation, metrics_of, scores_of
from gradvac.experiment.run.folder import TaskInfo, any_recipe, task_infos
from gradvac.experiment.training.balance import sampling_in_words
from gradvac.experiment.training.kind import Kind, kind_of
from gradvac.experiment.training.measuring import Measurement, measured_folder
from gradvac.geometry.record import GramRecord
from gradvac.geometry.similarity import EditCounts, edit_counts
from gradvac.reading import read_json, read_lines
from gradvac.text.languages import Direction, family_order, language
from gradvac.translation import scoring
from gradvac.translation.scoring import family_of
from gradvac.translation.shapes import TransformerConfig

TO_ENGLISH, FROM_ENGLISH = "Any\N{RIGHTWARDS ARROW}En", "En\N{RIGHTWARDS ARROW}Any"
_SIDES = {"any-en": TO_ENGLISH, "en-any": FROM_ENGLISH}
LANGUAGES = "languages"
"""The side of tasks that are not directions, such as the languages of tagging."""
METHODS = {
    "joint": "joint training",
    "static": "static weights",
    "gradvac": "GradVac",
    "pcgrad": "PCGrad",
    "mgda": "MGDA",
    "gradnorm": "GradNorm",
    "cats": "CATS (reconstruction)",
    "famo": "FAMO",
    "torchjd": "TorchJD",
}


@dataclass(frozen=True)
class TaskView:
    """A task as a report shows it; ``side`` is empty for directions without English."""

    name: str
    label: str
    short: str
    source: str
    target: str
    side: str
    family: str
    level: str = ""
    pairs: int | None = None

    @classmethod
    def of(cls, name: str, info: TaskInfo | None) -> TaskView:
        """The view of a task; without ``info`` only its name is known."""
        try:
            d = Direction.parse(name)
        except RecipeError:  # a task that is not a direction is its own label
            kin = info.family if info else "other"
            view = cls(name, name, name, "", "", LANGUAGES, kin)
        else:
            arrow = "\N{RIGHTWARDS ARROW}"
            label = f"{language(d.source).name} {arrow} {language(d.target).name}"
            side = _SIDES.get(scoring.side(name), "")
            kin = info.family if info else family_of(name)
            short = f"{d.source}{arrow}{d.target}"
            view = cls(name, label, short, d.source, d.target, side, kin)
        if info is None:
            return view
        return cls(**{**vars(view), "level": info.level, "pairs": info.pairs})

    @property
    def partner(self) -> str:
        """The language that is not English, or the name of the task."""
        return (self.target if self.side == FROM_ENGLISH else self.source) or self.name


def by_family(tasks: Iterable[TaskView]) -> list[TaskView]:
    """Into English first, then from English; within a side by family, as in the paper."""
    views = list(tasks)
    rank = {code: n for n, code in enumerate(family_order({v.partner for v in views}))}
    sides = [TO_ENGLISH, FROM_ENGLISH, LANGUAGES, ""]
    return sorted(views, key=lambda v: (sides.index(v.side), rank[v.partner], v.name))


@dataclass(frozen=True)
class RunView:
    """The contents of a run folder; a missing part is None or empty."""

    folder: Path
    name: str
    recipe: BaseRecipe
    tasks: Mapping[str, TaskInfo]
    train: list[dict[str, Any]]
    valid: list[dict[str, Any]]
    scores: dict[str, Any] | None
    translations: Mapping[str, Mapping[tuple[str, str], str]]
    edits: EditCounts | None

    @property
    def kind(self) -> Kind[Any, Any]:
        """The kind of job of the run."""
        return kind_of(self.recipe)

    @property
    def scorable(self) -> bool:
        """Whether to offer `gradvac evaluate`; it may report that test text is missing."""
        return self.kind.samples or self.recipe.has_test

    @property
    def method(self) -> str:
        """Name of the method."""
        return METHODS.get(self.recipe.method.name, self.recipe.method.name)

    def facts(self) -> dict[str, str]:
        """The properties in which runs may differ, in words."""
        if not (self.folder / "recipe.yaml").exists():
            return {"Model": "of Hugging Face", "Directions": str(len(self.tasks))}
        r = self.recipe
        steps = max((line["step"] for line in [*self.train, *self.valid]), default=0)
        facts = {
            "Method": self._method_in_words(),
            "Seed": str(r.seed),
            "Steps": f"{steps:,} of {r.training.steps:,}",
            "Starts from": r.start_in_words(),
            "Model": self._model_in_words(),
            "Batches": f"{r.batch_in_words()}, {sampling_in_words(r.batches)}",
            "Learning rate": f"{r.training.learning_rate:g} after {r.training.warmup:,} steps",
            "Directions": str(len(self.tasks)),
            "Training pairs": f"{sum(t.pairs for t in self.tasks.values()):,}",
        }
        if self.train:
            facts["Target tokens seen"] = f"{sum(line['tokens'] for line in self.train):,}"
        if valid := [line for line in self.valid if r.training.metric in line]:
            best = min(valid, key=lambda line: line[r.training.metric])
            facts["Best validation NLL"] = f"{best['nll']:.3f} at step {best['step']:,}"
        return facts

    def _method_in_words(self) -> str:
        m, o = self.recipe.method, self.recipe.method.options
        if m.name not in ("gradvac", "pcgrad"):
            return self.method
        tasks = o["tasks"] if isinstance(o["tasks"], str) else ", ".join(o["tasks"])
        words = f"{self.method}, {m.granularity}, tasks {tasks}"
        if m.name == "gradvac":
            goal = (
                f"beta {o['beta']:g}"
                if o["target"] == "adaptive"
                else f"fixed target {o['target']:g}"
            )
            words += f", {goal}" + (", rescaled" if o["rescale"] else "")
        return words

    def _model_in_words(self) -> str:
        if not (self.folder / "model.json").exists():
            return self.recipe.model_in_words()
        shape = read_json(self.folder / "model.json", TransformerConfig)
        return (
            f"{shape.encoder_layers}+{shape.decoder_layers} layers, width {shape.d_model}, "
            f"vocabulary {shape.vocabulary_size:,}"
        )


def load_runs(folders: Iterable[Path]) -> list[RunView]:
    """Read runs and the runs of sweeps; each is named by its folder, or what differs in its path.

    ``sweep/joint/seed-1`` and ``sweep/gradvac/seed-1`` are ``joint`` and ``gradvac``.

    Raises RunError for a folder that is not a run, and for damaged files, with file and line.
    """
    paths = list(dict.fromkeys(run.resolve() for run in all_runs(map(Path, folders))))
    return [_load(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of paths if they differ; else the part between their common ends."""
    if len({p.name for p in paths}) == len(paths):
        return [p.name for p in paths]
    parts = [p.parts for p in paths]
    shared = lambda rows: sum(
        1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    )
    head, tail = shared(parts), shared([p[::-1] for p in parts])
    tail = min(tail, min(map(len, parts)) - head)
    return ["/".join(p[head : len(p) - tail]) or "." for p in parts]


def _load(folder: Path, name: str) -> RunView:
    metrics = metrics_of(folder)
    translations: dict[str, dict[tuple[str, str], str]] = {}
    outputs = folder / "translations.jsonl"
    for line in read_lines(outputs, Translation, True) if outputs.exists() else ():
        pair = line["source"], line["reference"]
        translations.setdefault(line["direction"], {})[pair] = line["hypothesis"]
    recipe, tasks = _described(folder)
    return RunView(
        folder=folder,
        name=name,
        recipe=recipe,
        tasks=tasks,
        train=[line for line in metrics if line["kind"] == "train"],
        valid=[line for line in metrics if line["kind"] == "valid"],
        scores=scores_of(folder),
        translations=translations,
        edits=edit_counts(GramRecord(folder / "geometry")),
    )


def _described(folder: Path) -> tuple[BaseRecipe, dict[str, TaskInfo]]:
    """The recipe and the tasks of a run, or of a foreign model from its measurement."""
    measured = (
        None if (folder / "recipe.yaml").exists() else Measurement.read(measured_folder(folder))
    )
    if measured is None:
        return any_recipe(folder), task_infos(folder)
    try:
        parsed = [Direction.parse(task) for task in measured.tasks]
    except RecipeError as e:  # a run of another kind whose recipe is missing
        raise RunError(f"{folder}: not a run folder: no readable recipe.yaml") from e
    infos = [TaskInfo(0, "", family_of(d.name)) for d in parsed]
    recipe = parse_recipe({"data": {"train": [{"path": measured.origin}]}}, str(folder))
    return recipe, dict(zip(measured.tasks, infos, strict=True))
