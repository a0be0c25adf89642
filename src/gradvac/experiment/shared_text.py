"""Runs that differ in method or seed train on the same text: it is read and encoded once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradvac.experiment.files import RECIPE, TASKS, VOCABULARY, link, share, write_text
from gradvac.experiment.prepare import Prepared, build_text, open_prepared
from gradvac.experiment.recipe import Recipe, dump_recipe
from gradvac.experiment.resuming import build_once, resume

TEXT_SEED = 1  # of the vocabulary's sample: a sweep's seeds vary training, not the vocabulary


def text_key(recipe: Recipe) -> str:
    """A name for all that the text side of a run depends on."""
    tree = recipe.model_dump(mode="json")
    return key_of([tree["data"], tree["vocabulary"], tree["training"]["start_from"]])


def key_of(parts: list[Any]) -> str:
    """A short name for something that JSON takes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def prepare_sharing(
    recipe: Recipe, folder: Path, store: Path, say: Callable[[str], None]
) -> Prepared:
    """Prepare a run like :func:`gradvac.experiment.prepare.prepare`, with the text of ``store``.

    The run's folder still needs nothing else: its files are links to those of the store where the
    file system has them, and copies elsewhere.
    """
    text = store / f"text-{text_key(recipe)}"
    own = recipe.model_copy(update={"seed": TEXT_SEED})

    def build() -> None:
        build_once(text, lambda: build_text(own, text, say), wait=say)
        share_text(text, folder, recipe)

    if not build_once(folder, build):
        resume(recipe, folder, say)
    return open_prepared(folder)


def share_text(text: Path, folder: Path, recipe: Recipe) -> None:
    """Let a run of ``recipe`` hold the text of another folder."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    share(text / "data", folder / "data")
    link(text / VOCABULARY, folder / VOCABULARY)
    write_text(folder / RECIPE, dump_recipe(recipe))
    link(text / TASKS, folder / TASKS)  # last: its presence says that all is there
