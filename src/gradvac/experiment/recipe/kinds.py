"""Kinds of jobs, by the name that a recipe gives as ``job``.

The module of a kind has an object ``KIND``, a `gradvac.experiment.training.kind.Kind`. It is
imported only when a recipe of the kind is read.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.sections import BaseRecipe

UNNAMED = "translation"
"""The kind of a recipe without the key ``job``."""

KINDS = {
    UNNAMED: "gradvac.experiment.translation.kind",
    "tagging": "gradvac.experiment.tagging.kind",
    "encoder": "gradvac.experiment.encoder.kind",
}
"""The module of each kind, by its name."""


class HasRecipe(Protocol):
    """The part of a kind that the recipe loader uses."""

    @property
    def recipe(self) -> type[BaseRecipe]: ...  # noqa: D102


def find_kind(name: str) -> HasRecipe:
    """The object of a kind in `KINDS`."""
    return import_module(KINDS[name]).KIND


def recipe_type(job: str | None) -> type[BaseRecipe]:
    """The class that validates recipes of a ``job``; RecipeError for an unknown job."""
    named = [name for name in KINDS if name != UNNAMED]
    if job is not None and (not isinstance(job, str) or job not in named):
        raise RecipeError(f"job: found {job!r}, must be {', '.join(named)}, or not there")
    return find_kind(job or UNNAMED).recipe
