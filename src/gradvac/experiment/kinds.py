"""What a run folder is a run of, where a verb is for all kinds: translation, tagging, encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gradvac.engine.ranks.group import Ranks
from gradvac.errors import RecipeError, RunError
from gradvac.experiment.encoder.recipe import EncoderRecipe
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.recipe.variants import run_folder
from gradvac.experiment.run.folder import any_recipe
from gradvac.experiment.run.resuming import resume
from gradvac.experiment.tagging.recipe import TaggingRecipe
from gradvac.experiment.training.job import Job
from gradvac.experiment.training.together import started_by_torchrun
from gradvac.experiment.translation.recipe import Recipe

Say = Callable[[str], None]


def prepare_run(recipe: BaseRecipe, folder: Path, store: Path | None, say: Say) -> None:
    """Build the text side of a run, that of ``store`` where runs share it."""
    if isinstance(recipe, TaggingRecipe):
        from gradvac.experiment.tagging.prepare import prepare_tagging

        prepare_tagging(recipe, folder, store, say)
    elif isinstance(recipe, EncoderRecipe):
        from gradvac.experiment.encoder.prepare import prepare_encoder

        prepare_encoder(recipe, folder, store, say)
    elif isinstance(recipe, Recipe):
        from gradvac.experiment.translation.prepare import prepare
        from gradvac.experiment.translation.shared_text import prepare_sharing

        if store is None:
            prepare(recipe, folder, say)
        else:
            prepare_sharing(recipe, folder, store, say)


def resume_run(recipe: BaseRecipe, folder: Path, say: Say) -> None:
    """Check that a run is one of the recipe, and take over what may change; opens no text."""
    if isinstance(recipe, TaggingRecipe):
        from gradvac.experiment.tagging.prepare import as_scheduled

        recipe = as_scheduled(recipe, folder)
    resume(recipe, folder, say)


def prepare_below(root: Path, recipe: BaseRecipe, folder: Path | None, say: Say) -> Path:
    """Prepare a run in ``folder``, or where a sweep would below ``root``; returns its folder."""
    store = None
    if folder is None:
        folder, above = (
            run_folder(root, recipe.name, recipe.size, variant, recipe.seed)
            for variant in (recipe.variant, None)
        )
        store = above if recipe.variant else None
    prepare_run(recipe, folder, store, say)
    return folder


def train_recipe(
    recipe: BaseRecipe, folder: Path | None, console: Console, say: Say
) -> tuple[Path, int]:
    """Prepare a run below ``runs``, or in ``folder``, and train it; its folder and the exit code.

    RecipeError under torchrun, whose ranks `train_together`.
    """
    from gradvac.experiment.training.display import Display
    from gradvac.experiment.training.train import Trainer

    if started_by_torchrun():
        raise RecipeError("job: torchrun trains recipes of translation alone; leave torchrun")
    made = prepare_below(Path("runs"), recipe, folder, say)
    tensorboard = made / "tensorboard" if recipe.training.tensorboard else None
    return made, Trainer(job_of(made), Display(console, tensorboard)).train()


def train_together(recipe: BaseRecipe, folder: Path | None, console: Console, say: Say) -> int:
    """Train as `train_recipe`, as one of the ranks that torchrun started; the exit code."""
    from gradvac.experiment.training.ranks import train_on_ranks
    from gradvac.experiment.translation.prepare import open_prepared

    if not isinstance(recipe, Recipe):
        return train_recipe(recipe, folder, console, say)[1]  # refuses
    made = lambda: prepare_below(Path("runs"), recipe, folder, say)
    return train_on_ranks(recipe, lambda: open_prepared(made()), console)


def evaluate(
    folder: Path,
    options: dict[str, Any],
    console: Console,
    say: Say,
    ranks: Ranks | None = None,
) -> None:
    """Score a run of any kind on its test set, and print the table.

    ``options`` are those of `evaluate_run`. RunError for one that is given and is of translation
    alone, and for a run that has nothing to be scored on.
    """
    recipe = any_recipe(folder)
    if isinstance(recipe, Recipe):
        from gradvac.experiment.translation import evaluate as translation

        scores = translation.evaluate_run(folder, **options, say=say, ranks=ranks)
        console.print(translation.score_table(str(folder), scores))
        for signature in scores.signatures.values():
            say(signature)
        return
    if not isinstance(recipe, TaggingRecipe):
        raise RunError(f"{folder}: a run of an encoder has no test set; gradvac report shows it")
    checkpoint = options["checkpoint"]
    if given := [k for k, v in options.items() if k != "checkpoint" and v not in (None, [])]:
        names = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        raise RunError(f"{folder}: {names}: of translation alone, and this is a run of tagging")
    if ranks is None or not ranks.rank:
        from gradvac.experiment.tagging import evaluate as tagging

        console.print(
            tagging.score_table(str(folder), tagging.evaluate_tagging(folder, checkpoint))
        )


def job_of(folder: Path) -> Job[Any]:
    """The job of a prepared run folder, ready for the trainer."""
    recipe = any_recipe(folder)
    if isinstance(recipe, TaggingRecipe):
        from gradvac.experiment.tagging.job import TaggingJob
        from gradvac.experiment.tagging.prepare import open_tagging

        return TaggingJob(open_tagging(folder))
    if isinstance(recipe, EncoderRecipe):
        from gradvac.experiment.encoder.job import EncoderJob
        from gradvac.experiment.encoder.prepare import open_encoder

        return EncoderJob(open_encoder(folder))
    from gradvac.experiment.translation.job import TranslationJob
    from gradvac.experiment.translation.prepare import open_prepared

    return TranslationJob(open_prepared(folder))


def measure_geometry(
    run: Path,
    out: Path | None,
    rows: Path | None,
    directions: Sequence[str] | None = None,
    **options: Any,
) -> Path:
    """Measure gradients at the checkpoints of a run, as `measure_run` takes ``options``."""
    recipe = any_recipe(run)
    if isinstance(recipe, EncoderRecipe):
        raise RunError(f"{run}: a run of an encoder; those of translation and tagging are measured")
    if not isinstance(recipe, TaggingRecipe):
        from gradvac.experiment.translation.geometry import measure_run

        return measure_run(run, out, rows=rows, directions=directions, **options)
    from gradvac.experiment.tagging.geometry import measure_tagging

    if rows is not None:
        raise RunError(
            f"--rows: found {rows}, which has no tags; a run of tagging is measured on its own "
            "validation text"
        )
    if directions:
        raise RunError(f"--directions: found {','.join(directions)}; this run has languages")
    return measure_tagging(run, out, **options)


def has_test(recipe: BaseRecipe) -> bool:
    """Whether a run of the recipe has something to be scored on."""
    return bool(getattr(recipe, "data").test)  # noqa: B009  every kind has it, the base none


def has_validation(recipe: BaseRecipe) -> bool:
    """Whether a run of the recipe has text to be validated on."""
    if isinstance(recipe, TaggingRecipe):
        return any(own.valid for own in recipe.data.languages.values())
    if isinstance(recipe, EncoderRecipe):
        return bool(recipe.data.valid) or any(own.valid for own in recipe.data.tagged.values())
    return isinstance(recipe, Recipe) and bool(recipe.data.valid)


def score_run(folder: Path) -> None:
    """Score a run on its test set."""
    if isinstance(any_recipe(folder), TaggingRecipe):
        from gradvac.experiment.tagging.evaluate import evaluate_tagging

        evaluate_tagging(folder)
        return
    from gradvac.experiment.translation.evaluate import evaluate_run

    evaluate_run(folder)
