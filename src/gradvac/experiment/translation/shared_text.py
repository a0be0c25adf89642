"""Runs that differ in method or seed train on the same text: it is read and encoded once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradvac.experiment.recipe.load import dump_recipe
from gradvac.experiment.recipe.paths import RECIPE, TASKS
from gradvac.experiment.recipe.variants import read_yaml
from gradvac.experiment.run.files import VOCABULARY
from gradvac.experiment.run.resuming import build_once, resume
from gradvac.experiment.translation.prepare import Prepared, build_text, open_prepared
from gradvac.experiment.translation.recipe import (
    Recipe,
    chooses_normalization,
    run_recipe,
    with_normalization,
)
from gradvac.writing import link, share, write_text

TEXT_SEED = 1  # of the vocabulary's sample: a sweep's seeds vary training, not the vocabulary


def text_key(recipe: Recipe) -> str:
    """A name for all that the text side of a run depends on."""
    tree = recipe.model_dump(mode="json")
    if recipe.vocabulary.normalization == "nmt_nfkc":  # the name that earlier versions gave it
        del tree["vocabulary"]["normalization"]
    return key_of([tree["data"], tree["vocabulary"], tree["training"]["start_from"]])


def key_of(parts: list[Any]) -> str:
    """A short name for something that JSON takes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def prepare_sharing(
    recipe: Recipe, folder: Path, store: Path, say: Callable[[str], None]
) -> Prepared:
    """Prepare a run like :func:`gradvac.experiment.translation.prepare.prepare`, with the text of
    ``store``.

    The run's folder still needs nothing else: its files are links to those of the store where the
    file system has them, and copies elsewhere.
    """

    def build() -> None:
        own = _of_store(recipe, store, say).model_copy(update={"seed": TEXT_SEED})
        text = store / f"text-{text_key(own)}"
        build_once(text, lambda: build_text(own, text, say), wait=say)
        share_text(text, folder, recipe)

    if not build_once(folder, build):
        resume(recipe, folder, say)
    return open_prepared(folder)


def _of_store(recipe: Recipe, store: Path, say: Callable[[str], None]) -> Recipe:
    """The recipe, or what it meant in the version that prepared the text of ``store``."""
    earlier = with_normalization(recipe, "nmt_nfkc")
    text = store / f"text-{text_key(earlier)}"
    if chooses_normalization(recipe) or not (text / TASKS).exists():
        return recipe
    if "normalization" in read_yaml(text / RECIPE).get("vocabulary", {}):  # a variant chose it
        return recipe
    say("the text of this sweep was prepared with vocabulary.normalization: nmt_nfkc")
    return earlier


def share_text(text: Path, folder: Path, recipe: Recipe) -> None:
    """Let a run of ``recipe`` hold the text of another folder, and say how that was rewritten."""
    recipe = with_normalization(recipe, run_recipe(text).vocabulary.normalization)
    shutil.rmtree(folder / "data", ignore_errors=True)
    share(text / "data", folder / "data")
    link(text / VOCABULARY, folder / VOCABULARY)
    write_text(folder / RECIPE, dump_recipe(recipe))
    link(text / TASKS, folder / TASKS)  # last: its presence says that all is there
