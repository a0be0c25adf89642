"""`gradvac train`: a run of any kind, in one process or on the ranks of torchrun."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.training.display import Display
from gradvac.experiment.training.kind import Say, job_of, kind_of
from gradvac.experiment.training.prepare import prepare_below
from gradvac.experiment.training.ranks import train_on_ranks
from gradvac.experiment.training.together import started_by_torchrun
from gradvac.experiment.training.train import Trainer


def train_recipe(
    recipe: BaseRecipe, folder: Path | None, console: Console, say: Say
) -> tuple[Path, int]:
    """Prepare a run below ``runs`` or in ``folder``, and train it; its folder and exit code.

    RecipeError under torchrun for a kind without `on_ranks`.
    """
    made = lambda: prepare_below(Path("runs"), recipe, folder, say)
    if started_by_torchrun():
        if not kind_of(recipe).on_ranks:
            raise RecipeError("job: torchrun trains recipes of translation alone; leave torchrun")
        return train_on_ranks(recipe, made, console)
    job = job_of(made())
    return job.folder, Trainer(job, Display(console)).train()
