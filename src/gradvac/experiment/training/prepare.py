"""Prepare a self-contained run folder from a recipe: recipe, tasks, encoded text.

Runs that differ in method or seed train on the same text: it is read and encoded once, in a store.
The runs have hard links to its files, or copies if the file system has no links.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.recipe.variants import run_folder
from gradvac.experiment.run.folder import task_infos
from gradvac.experiment.run.resuming import build_once, finish, resume
from gradvac.experiment.training.job import Prepared
from gradvac.experiment.training.kind import Say, kind_of
from gradvac.experiment.training.loggers import check_loggers
from gradvac.writing import link, share

TEXT_SEED = 1  # samples text for the vocabulary, which is the same for all seeds of a sweep


def prepare(
    recipe: BaseRecipe, folder: Path, say: Say, store: Path | None = None
) -> Prepared[Any, Any]:
    """Build or open the text of a run in ``folder``; with ``store``, share it with other runs.

    ``say`` prints lines for the user: what was read, what was dropped and why. RunError names the
    keys that differ if the folder was made from a different recipe.
    """
    check_loggers(recipe.training.loggers)
    if not build_once(folder, lambda: _build(recipe, folder, say, store)):
        resume_run(recipe, folder, say)
    return kind_of(recipe).open(folder)


def prepare_below(root: Path, recipe: BaseRecipe, folder: Path | None, say: Say) -> Path:
    """Prepare a run in ``folder``, by default as in a sweep below ``root``; returns its folder."""
    store = None
    if folder is None:
        folder, above = (
            run_folder(root, recipe.name, recipe.size, variant, recipe.seed)
            for variant in (recipe.variant, None)
        )
        store = above if recipe.variant else None
    return prepare(recipe, folder, say, store).folder


def resume_run(recipe: BaseRecipe, folder: Path, say: Say) -> None:
    """Check that a run matches the recipe, and update keys that may change; opens no text."""
    resume(kind_of(recipe).resumed(recipe, folder), folder, say)


def share_text(text: Path, folder: Path, recipe: BaseRecipe) -> None:
    """Make ``folder`` a run of ``recipe`` with the text of another folder."""
    kind, tasks = kind_of(recipe), task_infos(text)
    shutil.rmtree(folder / "data", ignore_errors=True)
    for part in kind.parts:
        (share if (text / part).is_dir() else link)(text / part, folder / part)
    finish(folder, kind.with_text(recipe, text, tasks), tasks)


def text_key(recipe: BaseRecipe) -> str:
    """A key for everything that the text of a run depends on."""
    text = json.dumps(kind_of(recipe).text_of(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _build(recipe: BaseRecipe, folder: Path, say: Say, store: Path | None = None) -> None:
    kind = kind_of(recipe)
    if store is not None:
        own = kind.in_store(recipe, store, say).model_copy(update={"seed": TEXT_SEED})
        text = store / f"text-{text_key(own)}"
        build_once(text, lambda: _build(own, text, say), wait=say)
        share_text(text, folder, recipe)
        return
    for stale in (folder / "data", folder / "data.new"):  # left by an interrupted preparation
        shutil.rmtree(stale, ignore_errors=True)
    tasks = kind.prepare_text(recipe, folder, say)
    finish(folder, kind.with_text(recipe, folder, tasks), tasks)
