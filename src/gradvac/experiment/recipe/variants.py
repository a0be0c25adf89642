"""Recipe files that hold several experiments: sizes, variants and seeds.

Besides the sections of a recipe, a file may have::

    extends: setting.yaml            # a recipe file in the same folder, for the other keys
    sizes:                           # one of them is chosen by --size
      small: {model.preset: tiny, training.steps: 2000}
      paper: {}
    variants:                        # one of them is chosen by --variant; `gradvac sweep` runs all
      joint: {method.name: joint}
      gradvac: {method.name: gradvac, method.options.tasks: low}
    baseline: joint                  # what `gradvac compare` compares with; by default the first
    front: [t1, t5, t100]            # rows of its --front; by default all joint or static ones
    seeds: [1, 2, 3]                 # of `gradvac sweep`

Keys may be dotted or nested. Later values replace earlier ones: the extended file, the body, the
size, the variant, the variant in this size (``sizes.small.variants.gradvac``), then --set. A
variant ``bilingual/fr-en`` is one of the models of the row ``bilingual`` of a table.
"""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.recipe.method_options import OLD_KEYS
from gradvac.experiment.recipe.sections import SEEDS, BaseRecipe
from gradvac.experiment.recipe.yaml_text import parse_yaml
from gradvac.reading import read_text

KEYS = ("extends", "sizes", "variants", "baseline", "front", "seeds", "tune")
"""The keys of a recipe file besides the sections of a recipe."""

Tree = dict[str, Any]


@dataclass(frozen=True)
class RecipeFile:
    """The contents of a recipe file; :meth:`choose` selects one experiment."""

    path: Path
    model: type[BaseRecipe]
    body: Tree
    sizes: dict[str, Tree] = field(default_factory=dict)
    variants: dict[str, Tree] = field(default_factory=dict)
    baseline: str | None = None
    front: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1,)
    tune: Tree = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, model: type[BaseRecipe]) -> RecipeFile:
        """Read a file, and the one it extends; ``model`` defines which keys are sections.

        Raises RecipeError with the wrong key; sections are not validated yet.
        """
        own = read_yaml(path)
        own_name = own.pop("extends", None)
        base = cls._base(path, own_name, model) if own_name is not None else cls(path, model, {})
        sizes, variants = (_mappings(path, own, key) for key in ("sizes", "variants"))
        for name, tree in sizes.items():
            if "variants" in tree:
                tree["variants"] = _mappings(path, tree, "variants", f"sizes.{name}.")
        if variants:  # they replace those of the base, also in its sizes
            base = replace(base, sizes={k: _only(variants, v) for k, v in base.sizes.items()})
        seeds = own.pop("seeds", list(base.seeds))
        if (
            not isinstance(seeds, list)
            or not seeds
            or not all(type(s) is int and 0 <= s < SEEDS for s in seeds)
            or len(set(seeds)) < len(seeds)
        ):
            raise RecipeError(
                f"{path}: seeds: found {seeds!r}, must be different numbers from 0 to {SEEDS - 1}"
            )
        front = own.pop("front", [] if variants else list(base.front))
        if not isinstance(front, list) or not all(isinstance(name, str) for name in front):
            raise RecipeError(f"{path}: front: found {front!r}, must be a list of variants")
        tune = own.pop("tune", base.tune)
        if not isinstance(tune, dict):
            raise RecipeError(f"{path}: tune: found {tune!r}, must map keys to values")
        merged = {
            name: merge(base.sizes.get(name, {}), tree, model) for name, tree in sizes.items()
        }
        file = cls(
            path=path,
            model=model,
            baseline=own.pop("baseline", base.baseline),
            body=merge(base.body, own, model),
            sizes={**base.sizes, **merged},
            variants=variants or base.variants,
            seeds=tuple(seeds),
            front=tuple(front),
            tune=tune,
        )
        file._check_names()
        return file

    @classmethod
    def _base(cls, path: Path, name: Any, model: type[BaseRecipe]) -> RecipeFile:
        # In another folder its relative file names would mean other files.
        if not isinstance(name, str) or Path(name).name != name:
            raise RecipeError(f"{path}: extends: found {name!r}, must be a file in the same folder")
        if "extends" in read_yaml(path.parent / name):
            raise RecipeError(f"{path}: extends: {name} extends another file itself")
        return cls.read(path.parent / name, model)

    def choose(self, size: str | None, variant: str | None) -> Tree:
        """Return the tree of one experiment.

        Raises RecipeError if the file has sizes or variants and none is chosen, or the name is
        unknown.
        """
        size = self._pick("size", size or self.body.get("size"), self.sizes)
        variant = self._pick("variant", variant or self.body.get("variant"), self.variants)
        tree = self.body
        if size:
            of_size = {k: v for k, v in self.sizes[size].items() if k != "variants"}
            tree = merge(tree, {**of_size, "size": size}, self.model)
        if variant:
            tree = merge(tree, {**self.variants[variant], "variant": variant}, self.model)
            if size:
                here = self.sizes[size].get("variants", {}).get(variant, {})
                tree = merge(tree, here, self.model)
        return copy.deepcopy(tree)

    def _pick(self, what: str, name: str | None, known: dict[str, Tree]) -> str | None:
        if not known:
            if name and self.body.get(what) != name:  # equal in the recipe of a run
                raise RecipeError(f"{self.path}: has no {what}s; --{what} {name} says nothing here")
            return None
        if name is not None and not isinstance(name, str):
            raise RecipeError(f"{self.path}: {what}: found {name!r}, must be the name of one")
        if name in known:
            return name
        names = ", ".join(known)
        if name is None:
            rest = ", or run all of them with gradvac sweep" if what == "variant" else ""
            raise RecipeError(f"{self.path}: choose a {what} with --{what}: {names}{rest}")
        near = difflib.get_close_matches(name, known, 1)
        raise RecipeError(
            f"{self.path}: has no {what} {name!r}; there are: {names}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )

    def _check_names(self) -> None:
        """Reject names that are invalid for a folder, and variants that do not exist."""
        for name in [*self.sizes, *self.variants]:
            parts = name.split("/")
            if len(parts) > 2 or not all(p.strip(".") and _is_plain(p) for p in parts):
                raise RecipeError(
                    f"{self.path}: {name!r} is no name of a size or variant: letters, digits, "
                    "- . _ and at most one / for a part of a row"
                )
        for size, tree in self.sizes.items():
            if unknown := set(_mappings(self.path, dict(tree), "variants")) - set(self.variants):
                raise RecipeError(
                    f"{self.path}: sizes.{size}.variants: {sorted(unknown)} are no variants; there "
                    f"are: {', '.join(self.variants) or 'none'}"
                )
        rows = list(dict.fromkeys(row_of(name) for name in self.variants))
        named = [("baseline", self.baseline), *(("front", name) for name in self.front)]
        for key, name in named:
            if name is not None and name not in rows:
                raise RecipeError(
                    f"{self.path}: {key}: found {name!r}, must be a variant: "
                    f"{', '.join(rows) or 'there are none'}"
                )


def row_of(variant: str) -> str:
    """The row of a table that a variant belongs to: ``bilingual`` of ``bilingual/fr-en``."""
    return variant.split("/", 1)[0]


def run_folder(root: Path, name: str, size: str | None, variant: str | None, seed: int) -> Path:
    """The default folder of a run below ``root``."""
    experiment = root / (f"{name}-{size}" if size else name)
    return experiment / variant / f"seed-{seed}" if variant else experiment


def read_yaml(path: Path) -> Tree:
    """Read a mapping from a YAML file; RecipeError names the file and the line."""
    try:
        tree = parse_yaml(read_text(path))
    except RunError as e:
        raise RecipeError(str(e)) from e
    except ValueError as e:
        raise RecipeError(f"{path}{e}") from e
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections, found {type(tree).__name__}")
    return tree


def merge(below: Tree, above: Tree, model: type[BaseModel]) -> Tree:
    """Return ``below`` updated with ``above``: sections are merged, values replaced."""
    merged = dict(below)
    for key, value in above.items():
        first, dot, rest = str(key).partition(".")
        value = {rest: value} if dot else value
        field_ = model.model_fields.get(first)
        section = field_.annotation if field_ else None
        if isinstance(value, dict) and isinstance(section, type) and issubclass(section, BaseModel):
            inner = merged.get(first)
            merged[first] = merge(inner if isinstance(inner, dict) else {}, value, section)
        elif first == "variants" and not dot:  # of a size: replaced by name, merged in `choose`
            merged[first] = {**merged.get(first, {}), **value}
        elif dot and field_ is None and first not in OLD_KEYS:
            merged[key] = above[key]  # not a section: validation rejects it
        elif dot:  # one entry of a value such as method.options
            inner = merged.get(first)
            merged[first] = {**(inner if isinstance(inner, dict) else {}), **value}
        else:
            merged[first] = value
    return merged


def _mappings(path: Path, tree: Tree, key: str, at: str = "") -> dict[str, Tree]:
    """Remove a mapping of names to mappings from a tree and return it."""
    found = tree.pop(key, None)
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise RecipeError(f"{path}: {at}{key}: found {found!r}, must map names to what they change")
    named = {str(name): {} if value is None else value for name, value in found.items()}
    for name, value in named.items():
        if not isinstance(value, dict):
            raise RecipeError(f"{path}: {at}{key}.{name}: found {value!r}, must map keys to values")
    return named


def _only(variants: dict[str, Tree], size: Tree) -> Tree:
    kept = {k: v for k, v in size.get("variants", {}).items() if k in variants}
    return {**size, "variants": kept} if "variants" in size else size


def _is_plain(name: str) -> bool:
    return all(c.isalnum() or c in "-._" for c in name)
