"""Loading recipes: one YAML file describes a whole experiment.

Every key is validated before anything is loaded. An error names the file, the dotted key, the
value found, what is allowed, and a similar key or the section where the key belongs.
"""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.errors import explain
from gradvac.experiment.recipe.kinds import recipe_type
from gradvac.experiment.recipe.method_options import drop_other_spelling
from gradvac.experiment.recipe.paths import SHIPPED, TASKS, resolve
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.recipe.variants import RecipeFile, read_yaml
from gradvac.experiment.recipe.yaml_text import parse_yaml

R = TypeVar("R", bound=BaseRecipe)


def read_recipe_file(path: Path) -> RecipeFile:
    """Read a recipe file with all its sizes and variants; RecipeError."""
    file = resolve(str(path))
    tree = read_yaml(file)
    base = tree.get("extends")
    if "job" not in tree and isinstance(base, str) and (file.parent / base).is_file():
        tree = read_yaml(file.parent / base)
    return RecipeFile.read(file, recipe_type(tree.get("job")))


def load_recipe(
    path: Path | RecipeFile,
    changes: list[str] | None = None,
    *,
    size: str | None = None,
    variant: str | None = None,
    seed: int | None = None,
) -> BaseRecipe:
    """Read a recipe of any job; ``changes`` are ``section.key=value`` overrides with YAML values.

    ``size`` and ``variant`` select one experiment of a file that holds several, see
    :mod:`gradvac.experiment.recipe.variants`. Relative file names are relative to the recipe's
    folder; if the file is not there, to the working directory. Raises RecipeError.
    """
    file = path if isinstance(path, RecipeFile) else read_recipe_file(path)
    tree = file.choose(size, variant)
    if (file.path.parent / TASKS).exists():  # this file is the recipe of a run
        tree = file.model.of_run(tree)
    if seed is not None:
        tree["seed"] = seed
    for change in changes or []:
        _apply(tree, change)
    chosen = [f"{key} {tree[key]}" for key in ("size", "variant") if tree.get(key)]
    where = f"{file.path} ({', '.join(chosen)})" if chosen else str(file.path)
    return parse_recipe(tree, where).placed(partial(_placed, file.path.parent))


def _placed(folder: Path, name: str) -> str:
    """The absolute file name: in ``folder``, or in the working directory if only there."""
    if name.startswith(SHIPPED):
        return name
    below, here = folder / Path(name).expanduser(), Path(name).expanduser()
    there = os.path.exists(here) and not os.path.exists(below)  # False for an invalid path
    return str((here if there else below).resolve())


def parse_recipe(tree: dict[str, Any], where: str, run_code: bool = True) -> BaseRecipe:
    """Validate a tree of plain values; ``where`` names it in errors.

    ``run_code``: build the method to check it, which may import the package it comes from. False
    for a recipe that is only read, such as that of a downloaded run: its method is not checked.
    """
    if key := _nan(tree):
        raise RecipeError(f"{where}: {key}: found nan, must be a number")
    model = recipe_type(tree.get("job"))
    try:
        return model.model_validate(tree, context={"run_code": run_code})
    except ValidationError as e:
        lines = dict.fromkeys(explain(error, tree, model) for error in e.errors())
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from e


def of_kind(recipe: BaseRecipe, kind: type[R], where: str) -> R:
    """The same recipe if it is of this kind; RecipeError otherwise."""
    if not isinstance(recipe, kind):
        raise RecipeError(f"{where}: job: this is a recipe of another job than {kind.kind}")
    return recipe


def _nan(tree: Any, at: str = "") -> str:
    """The dotted key of a NaN, or "": not every bound of a value excludes NaN."""
    if isinstance(tree, dict | list):
        entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
        found = (_nan(value, f"{at}.{key}".lstrip(".")) for key, value in entries)
        return next(filter(None, found), "")
    return at if isinstance(tree, float) and math.isnan(tree) else ""


def dump_recipe(recipe: BaseRecipe) -> str:
    """The complete recipe as YAML, defaults written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(tree: dict[str, Any], change: str) -> None:
    """Set one ``section.key=value`` in the tree."""
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {change!r}: write section.key=value, such as method.name=pcgrad")
    *sections, last = key.split(".")
    drop_other_spelling(tree, key)
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise RecipeError(f"--set {change!r}: {section} is not a section")
        tree = below
    try:
        tree[last] = parse_yaml(value)
    except ValueError as e:
        raise RecipeError(f"--set {change[:200]!r}: {str(e).lstrip(':1 ')}") from e
