"""Verbs of sequence labelling: tag, pretrain-encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradvac.cli.options import Changes, RecipePath, Size, console, say
from gradvac.errors import RecipeError

app = typer.Typer()

Run = Annotated[
    Path | None,
    typer.Option(help="The run's folder. Default: runs/NAME, or runs/NAME-SIZE/VARIANT/seed-N."),
]
Variant = Annotated[str | None, typer.Option(help="One of the recipe's variants.")]
Seed = Annotated[int | None, typer.Option(help="Instead of the recipe's seed.")]


@app.command()
def tag(
    recipe: RecipePath,
    run: Run = None,
    size: Size = None,
    variant: Variant = None,
    seed: Seed = None,
    set_: Changes = None,
) -> None:
    """Fine-tune a pretrained encoder to label words, each language a task; score the test set.

    The same command again resumes. gradvac sweep runs all variants and seeds of such a recipe.

    Example: gradvac tag recipes/tagging/table3-ner.yaml --size small --variant gradvac
    --set data.folder=corpora/ner --set model.encoder=runs/encoder-small
    """
    from gradvac.experiment.run.folder import any_recipe
    from gradvac.experiment.training.kind import kind_of_run

    folder = _train(recipe, "tagging", run, size, variant, seed, set_)
    if any_recipe(folder).has_test and (scored := kind_of_run(folder).score(folder, {}, say)):
        console.print(scored.table)


@app.command()
def pretrain_encoder(
    recipe: RecipePath,
    run: Run = None,
    size: Size = None,
    variant: Variant = None,
    seed: Seed = None,
    set_: Changes = None,
) -> None:
    """Train a small multilingual encoder on masked text; RUN/best is a Hugging Face folder.

    The same command again resumes. Temperatures and gradient methods work as in translation.

    Example: gradvac pretrain-encoder recipes/tagging/encoder.yaml --size small
    """
    folder = _train(recipe, "encoder", run, size, variant, seed, set_)
    say(f"an encoder that transformers and gradvac tag open: {folder / 'best'}")


def _train(
    recipe: Path,
    kind: str,
    run: Path | None,
    size: str | None,
    variant: str | None,
    seed: int | None,
    changes: list[str] | None,
) -> Path:
    """Prepare and train one run of a kind; its folder."""
    from gradvac.experiment.recipe.load import load_recipe
    from gradvac.experiment.training.start import train_recipe

    loaded = load_recipe(recipe, changes, size=size, variant=variant, seed=seed)
    if loaded.kind != kind:
        raise RecipeError(f"{recipe}: job: this recipe is of another job; gradvac train takes any")
    folder, code = train_recipe(loaded, run, console, say)
    if code:
        raise typer.Exit(code)
    return folder
