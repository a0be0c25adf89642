"""What the runs of a size would cost on a machine that is not at hand: counted, not measured."""

from __future__ import annotations

from pathlib import Path

import torch

from gradvac.experiment.recipe.load import load_recipe, read_recipe_file
from gradvac.experiment.translation.job import build_model
from gradvac.experiment.translation.recipe import Recipe

SUSTAINED = 150e12
"""FLOP/s of one GPU, chosen here: about a seventh of the dense bf16 peak of an H100."""
RECIPES = (
    "evidence/geometry",
    "evidence/partners",
    "evidence/imbalance",
    "evidence/cats",
    "gradvac/table1-from-en",
    "gradvac/table1-to-en",
    "gradvac/table6-tasks",
    "gradvac/table7-granularity",
    "gradvac/table8-beta",
)

LANGUAGES = "fr es de pl cs mk bg uk be ru lv lt et fi hi mr gu ne kk ky sw zu xh id ms tr".split()


def empty_corpus(folder: Path) -> Path:
    """Make ``folder`` what recipes take for a corpus of all languages; its text is not read."""
    (folder / "train").mkdir()
    for code in LANGUAGES:
        (folder / "train" / f"en-{code}.tsv").touch()
    return folder


def flops(recipe: Recipe) -> float:
    """Of training a run: 6 per parameter and target token (Kaplan et al. 2020, section 2.1).

    Counts source text as long as target text, and nothing for attention scores, validation or
    task gradients.
    """
    shape = recipe.model_copy(update={"model": recipe.model.model_copy(update={"clsr": None})})
    with torch.device("meta"):
        model = build_model(shape, recipe.vocabulary.size)
    parameters = sum(p.numel() for p in model.parameters())
    tokens = recipe.training.steps * recipe.batches.accumulate * recipe.batches.tokens
    return 6.0 * parameters * tokens


def table(root: Path, size: str, corpus: Path) -> str:
    """Runs, FLOP and hours of every recipe at a size; ``corpus`` stands for its text."""
    lines = ["| command | runs | EFLOP | GPU hours |", "|---|---:|---:|---:|"]
    for name in RECIPES:
        file = read_recipe_file(root / f"{name}.yaml")
        changes = [f"data.corpus={corpus}"]
        runs = len(file.variants) * len(file.seeds)
        total = len(file.seeds) * sum(  # a run costs the same with every seed
            flops(load_recipe(file, changes, size=size, variant=variant))
            for variant in file.variants
        )
        command = f"`gradvac sweep recipes/{name}.yaml --size {size} --gpu 0`"
        hours = total / SUSTAINED / 3600
        lines.append(f"| {command} | {runs} | {total / 1e18:,.1f} | {hours:,.0f} |")
    return "\n".join(lines)
