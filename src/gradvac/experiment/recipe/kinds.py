"""Kinds of jobs, found by the name that a recipe gives as ``job``.

A kind is a module with an object ``KIND``, what `gradvac.experiment.training.kind.Kind` describes.
Its module is imported when a recipe of the kind is read, and not before.
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
    """What the loader of recipes asks of a kind."""

    @property
    def recipe(self) -> type[BaseRecipe]: ...  # noqa: D102


def find_kind(name: str) -> HasRecipe:
    """The object of a kind in `KINDS`."""
    return import_module(KINDS[name]).KIND


def recipe_type(job: str | None) -> type[BaseRecipe]:
    """What a recipe of a ``job`` is validated as; RecipeError for a job there is not."""
    named = [name for name in KINDS if name != UNNAMED]
    if job is not None and (not isinstance(job, str) or job not in named):
        raise RecipeError(f"job: found {job!r}, must be {', '.join(named)}, or not there")
    return find_kind(job or UNNAMED).recipe
