"""Preparing a run folder once, and resuming it with the same recipe.

Keys that do not affect past training may change: beam search, what is kept and logged, and a larger
number of steps, which continues from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradvac.errors import RunError
from gradvac.experiment.recipe.load import dump_recipe
from gradvac.experiment.recipe.paths import RECIPE, TASKS
from gradvac.experiment.recipe.schedule import learning_rate
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.run.checkpoint import list_checkpoints
from gradvac.experiment.run.files import DONE, ENDED, SCORES, TESTS
from gradvac.experiment.run.folder import TaskInfo, any_recipe
from gradvac.experiment.run.lock import alone
from gradvac.writing import write_json, write_text

Say = Callable[[str], None]

STEPS = "training.steps"
FREE = {
    STEPS,
    *(f"training.{key}" for key in ("epochs", "warmup_share")),  # they determine steps and warmup
    *(f"training.{key}" for key in ("keep", "keep_every", "checkpoint_every", "average")),
    *(f"training.{key}" for key in ("validate_every", "patience", "log_every", "loggers")),
    "training.nonfinite",
    "method.record_every",
    *(f"search.{key}" for key in ("beam", "length_penalty", "batch_tokens", "sentences")),
    *(f"search.{key}" for key in ("bleu_tokenize", "zero_shot")),
}
"""Keys that may change when a run is resumed, or after its end."""


def build_once(folder: Path, build: Callable[[], None], wait: Say | None = None) -> bool:
    """Prepare a folder unless it is prepared; returns whether this process did.

    RunError if another process is preparing it; with ``wait``, which receives a message, wait.
    """
    if (folder / TASKS).exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, "preparing this folder", wait):
        if (folder / TASKS).exists():
            return False
        build()
    return True


def finish(folder: Path, recipe: BaseRecipe, tasks: Mapping[str, TaskInfo]) -> None:
    """Write the recipe, then the tasks: their file marks the folder as complete."""
    write_text(folder / RECIPE, dump_recipe(recipe))
    write_json(folder / TASKS, {name: asdict(info) for name, info in tasks.items()})


def resume(recipe: BaseRecipe, folder: Path, say: Say) -> None:
    """Update the recipe of a run with the keys that may change; RunError names other changes.

    Name, device and folders of files may differ, and keep their old values: the run has its own
    copy of the text, and may have moved.
    """
    kept = any_recipe(folder)
    changed = differing(kept, recipe)
    old, new = kept.training.steps, recipe.training.steps
    if refused := [key for key in changed if key not in FREE]:
        raise RunError(
            f"{folder} holds a run of another recipe; these keys differ: {', '.join(refused)}. "
            "Choose another folder with --run, or restore the recipe to resume"
        )
    if new < old:
        raise RunError(
            f"{folder}: {STEPS}: found {new}, and the run has {old}: more steps go on from its "
            "end, fewer need another folder, with --run"
        )
    if not changed:
        return
    with alone(folder):
        for key in changed:
            say(f"{folder}: {key}: {_value(kept, key)!r} becomes {_value(recipe, key)!r}")
        if old < new:
            say(f"{folder}: {_of_more_steps(kept, recipe, folder)}")
        if any(key == STEPS or key.startswith("search.") for key in changed):
            _remove_scores(folder, say)
        if old < new and (folder / DONE).exists():
            (folder / DONE).replace(folder / ENDED)
        write_text(folder / RECIPE, dump_recipe(_with(kept, recipe, changed)))


def _remove_scores(folder: Path, say: Say) -> None:
    made = [folder / SCORES, *folder.glob(f"{TESTS}/*/{SCORES}")]
    for file in made:
        if file.exists():
            file.unlink()
            say(f"{file}: removed: made before that; gradvac evaluate writes it again")


def differing(old: BaseRecipe, new: BaseRecipe) -> list[str]:
    """The dotted keys in which two recipes differ, except keys that only name a run."""
    before, after = (_by_name(r.model_dump(mode="json")) for r in (old, new))
    if old.__class__ is not new.__class__:
        return ["job"]
    found = [
        f"{section}.{key}"
        for section, keys in before.items()
        if isinstance(keys, dict)
        for key in keys
        if keys[key] != after[section][key]
    ]
    return [*found, *["seed"] * (before["seed"] != after["seed"])]


def _with(kept: BaseRecipe, recipe: BaseRecipe, changed: list[str]) -> BaseRecipe:
    """The recipe ``kept`` with the ``changed`` keys of ``recipe``."""
    sections: dict[str, dict[str, Any]] = {}
    for section, _, key in (name.partition(".") for name in changed):
        sections.setdefault(section, {})[key] = getattr(getattr(recipe, section), key)
    return kept.model_copy(
        update={
            name: getattr(kept, name).model_copy(update=values) for name, values in sections.items()
        }
    )


def _value(recipe: BaseRecipe, dotted: str) -> Any:
    section, _, key = dotted.partition(".")
    return getattr(getattr(recipe, section), key)


def _of_more_steps(old: BaseRecipe, new: BaseRecipe, folder: Path) -> str:
    """The effect of more steps on the schedules, in words."""
    saved = list_checkpoints(folder / "checkpoints")
    step = int(saved[-1].name.removeprefix("step-")) if saved else 0
    before, now = (learning_rate(r.training, step + 1) for r in (old, new))
    text = (
        f"more steps go on from step {step}; the learning rate of step {step + 1} is {now:.3g}, "
        f"where {old.training.steps} steps made it {before:.3g}"
        if before != now
        else f"more steps go on from step {step}; the learning rate goes on as it was"
    )
    if new.batches.sampling == "unimax":
        text += "; the shares of unimax are those of the new number of steps"
    own = new.more_steps_in_words()
    return text + (f"; {own}" if own else "")


def _by_name(tree: Any) -> Any:
    """The tree with absolute paths reduced to their file names."""
    if isinstance(tree, dict):
        return {key: _by_name(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_by_name(value) for value in tree]
    return Path(tree).name if isinstance(tree, str) and Path(tree).is_absolute() else tree
