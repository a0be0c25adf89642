"""`gradvac tune`: search hyper-parameters on validation text, with the same budget per variant.

Wang et al. 2021 choose by validation perplexity (appendix F), for sequence labelling by validation
error (appendix G): `BaseRecipe.searched`. The search uses the tree-structured Parzen estimator of
Optuna (Akiba et al. 2019); trial 0 is the unchanged recipe, if it is in the space. A trial is an
ordinary run folder, not scored on the test set. The journal of a search is stored beside its
trials: the same command resumes, and a stopped trial continues from its checkpoint. Each trial is
drawn with a seed made of its number, so a stop changes nothing. Failed trials count.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gradvac.errors import GradvacError, RecipeError, RunError
from gradvac.experiment.recipe.load import dump_recipe, load_recipe, read_recipe_file
from gradvac.experiment.recipe.method_options import of_a_run, with_old_keys
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.recipe.tune_space import Parameter, as_yaml, read_space
from gradvac.experiment.recipe.variants import RecipeFile
from gradvac.experiment.run.contents import Searched, metrics_of
from gradvac.experiment.run.folder import any_recipe
from gradvac.experiment.sweep.sweep import LOG, last_line, start
from gradvac.experiment.training.prepare import prepare
from gradvac.experiment.training.process import StopSignal
from gradvac.reading import read_json
from gradvac.tables import Cell, Table
from gradvac.writing import write_csv, write_json, write_text

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

EXTRA = "pip install 'gradvac[tune]'"
DESCRIPTION, JOURNAL, BEST, TRIALS = "tune.json", "study.journal", "best.yaml", "trials.csv"


@dataclass
class Search:
    """The search of one variant.

    ``base`` is its unchanged recipe, ``own`` the values of that recipe if all are in the space;
    ``root`` has the text that trials share.
    """

    file: RecipeFile
    variant: str | None
    base: BaseRecipe
    changes: list[str]
    parameters: tuple[Parameter, ...]
    root: Path
    folder: Path
    study: Study
    own: dict[str, Any] | None

    def recipe(self, trial: FrozenTrial) -> BaseRecipe:
        """The recipe of a trial."""
        values = {p.key: trial.params[p.key] for p in self.parameters}
        told = [f"{k}={v if isinstance(v, str) else as_yaml(v)}" for k, v in values.items()]
        return load_recipe(
            self.file,
            [*self.changes, *told],
            size=self.base.size,
            variant=self.variant,
            seed=self.base.seed,
        )

    def run_folder(self, trial: FrozenTrial) -> Path:
        """Where a trial is trained."""
        return self.folder / f"trial-{trial.number:03d}"

    @property
    def measure(self) -> str:
        """The validation number that is minimised."""
        return self.base.searched

    def finished(self) -> list[FrozenTrial]:
        """Complete and failed trials."""
        return [t for t in self.study.trials if t.state.is_finished()]


def run_tune(
    recipe: Path,
    out: Path | None,
    *,
    size: str | None,
    only: Sequence[str],
    trials: int | None,
    seed: int | None,
    changes: list[str] | None,
    console: Console,
) -> int:
    """Search for every variant of a recipe file; returns 0, or 128 + signal if stopped.

    ``only`` names variants; ``trials`` and ``seed`` replace the file's. All values of the space are
    checked before anything trains. Raises RecipeError; RunError if the extra is missing or the
    folder holds another search.
    """
    file = read_recipe_file(recipe)
    space = read_space(file, trials)
    names: list[str | None] = [v for v in file.variants if not only or v in only]
    if unknown := set(only) - set(file.variants):
        file.choose(size, min(unknown))  # raises, with the nearest name
    searches = []
    for variant in names or [None]:
        base = load_recipe(file, changes, size=size, variant=variant, seed=seed)
        name = "-".join(filter(None, (base.name, base.size, "tuned")))
        root = out or Path("runs") / name
        searches.append(_plan(file, variant, base, changes or [], space.of(variant), root))
    stop = StopSignal()
    with stop.listening():
        for search in searches:
            _search(search, space.trials, console, stop)
            _write(search)
            console.print(table(search).terminal(whole=()))
            if stop.number:
                console.print("stopped; the same command goes on")
                return 128 + stop.number
    console.print(summary(searches).terminal(whole=()))
    return 0


def _plan(
    file: RecipeFile,
    variant: str | None,
    base: BaseRecipe,
    changes: list[str],
    parameters: tuple[Parameter, ...],
    root: Path,
) -> Search:
    """Check and open the search of one variant."""
    _check(file, base, parameters, changes, variant)
    folder = root / (variant or base.method.name)
    values = {p.key: _value_of(base, p.key) for p in parameters}
    own = values if all(p.holds(values[p.key]) for p in parameters) else None
    study = _open(folder, parameters, base)
    if own and not study.trials:
        first = {p.key: as_yaml(own[p.key]) if p.choices else own[p.key] for p in parameters}
        study.enqueue_trial(first)
    return Search(file, variant, base, changes, parameters, root, folder, study, own)


def table(search: Search) -> Table:
    """The trials of a search; the best in bold."""
    best = _best(search)
    rows = [
        [
            Cell(text, bold=best is not None and trial.number == best.number)
            for text in (str(trial.number), *_texts(search, trial), _result(trial))
        ]
        for trial in search.study.trials
    ]
    heads = ["trial", *(p.key for p in search.parameters), search.measure]
    return Table(heads, rows, str(search.folder))


def summary(searches: Sequence[Search]) -> Table:
    """The best trial of every variant; each had the same number of trials."""
    rows = []
    for search in searches:
        done, best = search.finished(), _best(search)
        failed = sum(t.value is None for t in done)
        first = _result(done[0]) if done and search.own else ""
        value, file = (_result(best), str(search.folder / BEST)) if best else ("", "")
        rows.append([search.folder.name, str(len(done)), str(failed), value, first, file])
    heads = ["", "trials", "failed", searches[0].measure, "as it stood", "recipe"]
    return Table(heads, rows, "best of each", words=("recipe",))


def lowest(run: Path, measure: str) -> float:
    """The lowest value of a validation number in a run; RunError if there is none."""
    found = [line.get(measure) for line in metrics_of(run)]
    known = [value for value in found if value is not None and math.isfinite(value)]
    if not known:
        raise RunError(f"{run}: no validation {measure} that is finite")
    return min(known)


def _check(
    file: RecipeFile,
    base: BaseRecipe,
    parameters: Sequence[Parameter],
    changes: list[str],
    variant: str | None,
) -> None:
    """Refuse unknown keys, invalid values, and a recipe without validation."""
    if not base.has_validation:
        raise RecipeError(
            f"{file.path}: {base.valid_at}: valid: empty; the search minimises its {base.searched}"
        )
    for parameter in parameters:
        for value in parameter.samples:
            told = [*changes, f"{parameter.key}={value}"]
            load_recipe(file, told, size=base.size, variant=variant, seed=base.seed)


def _open(folder: Path, parameters: Sequence[Parameter], base: BaseRecipe) -> Study:
    """Create or reopen a study; RunError if the folder holds another one."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as e:
        raise RunError(f"gradvac tune needs Optuna: {EXTRA}") from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / DESCRIPTION
    tree = json.loads(
        json.dumps({"space": [vars(p) for p in parameters], "recipe": base.model_dump(mode="json")})
    )
    if said.exists():
        old = read_json(said, Searched)
        if isinstance(method := old["recipe"].get("method"), dict):
            old["recipe"]["method"] = with_old_keys(of_a_run(method))
        for one in (old, tree):  # a search begun before a key existed continues without it
            one["recipe"] = base.comparable(one["recipe"])
        if old != tree:
            raise RunError(f"{folder}: holds a search of another space or recipe; choose --out")
    else:
        write_json(said, tree)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return optuna.create_study(storage=storage, study_name="tune", load_if_exists=True)


def _search(search: Search, trials: int, console: Console, stop: StopSignal) -> None:
    """Finish the trials that were begun, then run more until there are ``trials``."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    study, space = search.study, {p.key: _distribution(p) for p in search.parameters}
    begun = [t for t in study.trials if t.state == TrialState.RUNNING]
    while not stop.number and (begun or len(search.finished()) < trials):
        if begun:
            trial = begun.pop(0)
        else:
            number = len(search.finished())
            study.sampler = TPESampler(seed=search.base.seed * 100_000 + number)
            asked = study.ask(space)
            trial = study.trials[asked.number]
        try:
            value = _train(search, trial, console, stop)
        except GradvacError as e:
            study.tell(trial.number, state=TrialState.FAIL)
            console.print(f"trial {trial.number} failed: {e}", markup=False, soft_wrap=True)
            continue
        if value is not None:
            study.tell(trial.number, value)
            console.print(
                f"{search.run_folder(trial)}: {search.measure} {value:.3f}", soft_wrap=True
            )


def _train(search: Search, trial: FrozenTrial, console: Console, stop: StopSignal) -> float | None:
    """The result of a trial, None if it was stopped; RunError if it failed."""
    folder = search.run_folder(trial)
    prepare(search.recipe(trial), folder, console.print, search.root)
    process = start(folder, score=False)
    while process.poll() is None:
        time.sleep(0.1)
        if stop.number and process.poll() is None:
            process.send_signal(stop.number)  # saves a checkpoint
            process.wait()
    if stop.number:
        return None
    if process.returncode:
        raise RunError(last_line(folder / LOG, process.returncode))
    return lowest(folder, search.measure)


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna import distributions

    if parameter.choices:
        return distributions.CategoricalDistribution(parameter.choices)
    low, high = parameter.low, parameter.high
    if isinstance(low, int) and isinstance(high, int):
        return distributions.IntDistribution(low, high, log=parameter.log)
    return distributions.FloatDistribution(low, high, log=parameter.log)


def _value_of(recipe: BaseRecipe, key: str) -> Any:
    value: Any = recipe.model_dump(mode="json")
    value["method"] = {**value["method"]["options"], **value["method"]}  # the old keys of it
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _best(search: Search) -> FrozenTrial | None:
    complete = [t for t in search.finished() if t.value is not None]
    return min(complete, key=lambda t: (t.value, t.number), default=None)


def _texts(search: Search, trial: FrozenTrial) -> list[str]:
    values = [trial.params.get(p.key, "") for p in search.parameters]
    return [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values]


def _result(trial: FrozenTrial) -> str:
    if trial.value is not None:
        return f"{trial.value:.3f}"
    return "failed" if trial.state.is_finished() else "not finished"


def _write(search: Search) -> None:
    """The table as CSV, and the best recipe, complete."""
    keys = [p.key for p in search.parameters]
    lines: list[list[Any]] = [["trial", *keys, "state", search.measure]]
    for t in search.study.trials:
        lines.append([t.number, *(t.params.get(k) for k in keys), t.state.name, t.value])
    write_csv(search.folder / TRIALS, lines, "\n")
    if best := _best(search):
        head = f"# Trial {best.number}: validation {search.measure} {best.value:.4f}.\n"
        text = head + dump_recipe(any_recipe(search.run_folder(best)))  # as it was trained
        write_text(search.folder / BEST, text)
