"""File names in recipes, and the files that show that a recipe is that of a run."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

RECIPE, TASKS = "recipe.yaml", "tasks.json"
SHIPPED = "shipped:"


def resolve(name: str) -> Path:
    """A file of the recipe; ``shipped:NAME`` is a file that comes with the package."""
    if name.startswith(SHIPPED):
        return Path(str(importlib.resources.files("gradvac") / "assets" / name[len(SHIPPED) :]))
    return Path(name)
