"""Runs that differ in method or seed train on the same text: it is read and encoded once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradvac.experiment.prepare import Prepared, open_prepared, prepare, run_recipe
from gradvac.experiment.recipe import Recipe, chooses_normalization, dump_recipe, with_normalization
from gradvac.experiment.variants import run_folder

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
    """Prepare a run like :func:`gradvac.experiment.prepare.prepare`, with the text of ``store``.

    The run's folder still needs nothing else: its files are links to those of the store where the
    file system has them, and copies elsewhere.
    """
    if (folder / "tasks.json").exists():
        return prepare(recipe, folder, say)  # which checks that it is a run of this recipe
    earlier = with_normalization(recipe, "nmt_nfkc")
    there = (store / f"text-{text_key(earlier)}" / "tasks.json").exists()
    if there and not chooses_normalization(recipe):
        say("the text of this sweep was prepared with vocabulary.normalization: nmt_nfkc")
        recipe = earlier
    text = store / f"text-{text_key(recipe)}"
    if not (text / "tasks.json").exists():
        prepare(recipe.model_copy(update={"seed": TEXT_SEED}), text, say)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(text / "data", folder / "data", copy_function=link, dirs_exist_ok=True)
    link(text / "vocabulary.model", folder / "vocabulary.model")
    recipe = with_normalization(recipe, run_recipe(text).vocabulary.normalization)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    link(text / "tasks.json", folder / "tasks.json")  # last: its presence says that all is there
    return open_prepared(folder)


def prepare_in(
    root: Path, recipe: Recipe, folder: Path | None, say: Callable[[str], None]
) -> Prepared:
    """Prepare a run in ``folder``, or where it goes below ``root``, as a sweep would prepare it."""
    if folder is not None:
        return prepare(recipe, folder, say)
    own, store = (
        run_folder(root, recipe.name, recipe.size, variant, recipe.seed)
        for variant in (recipe.variant, None)
    )
    return prepare_sharing(recipe, own, store, say) if recipe.variant else prepare(recipe, own, say)


def link(source: str | Path, target: str | Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy of it."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy(source, target)
