"""What `gradvac tune` searches: the section ``tune`` of a recipe file.

::

    tune:
      trials: 20                       # of each variant: equal budgets
      space:
        training.learning_rate: {range: [5.0e-4, 8.0e-3], log: true}
        training.warmup: {range: [100, 400]}          # integers if both ends are
        batches.temperature: {choices: [1, 2, 5]}
      variants:                        # keys for some variants only
        gradvac: {method.options.beta: {choices: [0.001, 0.01, 0.1]}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.variants import RecipeFile, row_of


@dataclass(frozen=True)
class Parameter:
    """A key of the recipe and its values: ``choices`` as YAML, or a range."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def samples(self) -> list[str]:
        """Values to check for a valid recipe before the first trial."""
        return list(self.choices) or [as_yaml(self.low), as_yaml(self.high)]

    def holds(self, value: object) -> bool:
        """Whether the space contains a value of a recipe."""
        if self.choices:
            return as_yaml(value) in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Space:
    """Number of trials per variant, and parameters by variant; "" is for all variants."""

    trials: int
    parameters: Mapping[str, tuple[Parameter, ...]]

    def of(self, variant: str | None) -> tuple[Parameter, ...]:
        """The parameters of a variant: its own, and those of all that it does not replace."""
        own = self.parameters.get(variant or "", ()) if variant else ()
        own = own or (self.parameters.get(row_of(variant), ()) if variant else ())
        keys = {p.key for p in own}
        return (*(p for p in self.parameters[""] if p.key not in keys), *own)


def read_space(file: RecipeFile, trials: int | None = None) -> Space:
    """The section ``tune`` of a recipe file; RecipeError names the wrong key."""
    tree = dict(file.tune)
    where = f"{file.path}: tune"
    if not tree:
        raise RecipeError(f"{where}: not there; it says what to search, see docs/recipes.md")
    count, space = tree.pop("trials", 20), tree.pop("space", {})
    variants = tree.pop("variants", {})
    if tree:
        raise RecipeError(f"{where}.{min(tree)}: unknown key; allowed: trials, space, variants")
    count = count if trials is None else trials
    if type(count) is not int or count < 1:
        raise RecipeError(f"{where}.trials: found {count!r}, must be a number of at least 1")
    names = {*file.variants, *map(row_of, file.variants)}
    for name in variants if isinstance(variants, dict) else [variants]:
        if not isinstance(variants, dict) or name not in names:
            known = ", ".join(file.variants) or "none"
            raise RecipeError(f"{where}.variants: {name!r} is no variant; there are: {known}")
    parameters = {"": _parameters(f"{where}.space", space)}
    parameters |= {n: _parameters(f"{where}.variants.{n}", t) for n, t in variants.items()}
    if not any(parameters.values()):
        raise RecipeError(f"{where}.space: empty; name a key such as training.learning_rate")
    return Space(count, parameters)


def as_yaml(value: object) -> str:
    """A value as one line of YAML, for ``--set``."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _parameters(where: str, tree: Any) -> tuple[Parameter, ...]:
    if not isinstance(tree, dict):
        raise RecipeError(f"{where}: found {tree!r}, must map keys of the recipe to their values")
    return tuple(_parameter(f"{where}.{key}", str(key), value) for key, value in tree.items())


def _parameter(where: str, key: str, found: Any) -> Parameter:
    forms = "{choices: [...]} or {range: [low, high]}, with log: true if it spans decades"
    number = lambda x: isinstance(x, int | float) and not isinstance(x, bool)
    if isinstance(found, dict):
        choices, ends = found.get("choices"), found.get("range")
        if set(found) == {"choices"} and isinstance(choices, list) and choices:
            return Parameter(key, tuple(dict.fromkeys(map(as_yaml, choices))))
        log = found.get("log", False)
        if (
            set(found) <= {"range", "log"}
            and isinstance(ends, list)
            and len(ends) == 2
            and all(map(number, ends))
            and ends[0] < ends[1]
            and isinstance(log, bool)
            and (ends[0] > 0 or not log)
        ):
            return Parameter(key, low=ends[0], high=ends[1], log=log)
    raise RecipeError(f"{where}: found {found!r}, must be {forms}")
