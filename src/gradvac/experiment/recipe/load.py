"""Recipes: one YAML file describes a whole experiment; nothing in it is trusted unread.

Every key is validated before anything is loaded. An error names the file, the dotted key, the
value found, what is allowed, and the nearest spelling or the section where the key belongs.
"""

from __future__ import annotations

import importlib.resources
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError, model_validator

from gradvac.data.spool import ENGLISH
from gradvac.errors import RecipeError, RunError
from gradvac.experiment.recipe.errors import explain
from gradvac.experiment.recipe.method_options import drop_other_spelling, of_a_run
from gradvac.experiment.recipe.sections import (
    BaseRecipe,
    BatchSection,
    DataSection,
    ModelSection,
    SearchSection,
    SourceSection,
    VocabularySection,
)
from gradvac.experiment.recipe.variants import RecipeFile, read_yaml
from gradvac.experiment.recipe.yaml_text import parse_yaml
from gradvac.experiment.run.files import RECIPE, TASKS
from gradvac.experiment.tagging.recipe import EncoderRecipe, TaggingRecipe
from gradvac.reading import read_text
from gradvac.text.languages import same_language
from gradvac.translation.tokenizers import FILE, VOCABULARY
from gradvac.translation.vocabulary import Normalization

SHIPPED = "shipped:"


class Recipe(BaseRecipe):
    """A whole experiment of translation."""

    data: DataSection
    vocabulary: VocabularySection = VocabularySection()
    model: ModelSection = ModelSection()
    batches: BatchSection = BatchSection()  # pyright: ignore[reportIncompatibleVariableOverride]
    search: SearchSection = SearchSection()

    def batch_in_words(self) -> str:
        """How much text an update sees."""
        return f"{self.batches.tokens * self.batches.accumulate:,} target tokens"

    def model_in_words(self) -> str:
        """What the model is, of a run that has none yet."""
        return f"preset {self.model.preset}"

    def placed(self, place: Callable[[str], str]) -> Recipe:
        """The same with every relative file name given to ``place``."""
        return _absolute(self, place)

    @model_validator(mode="after")
    def _routing_is_trained_jointly(self) -> Recipe:
        if self.model.clsr and self.method.name != "joint":
            raise ValueError(
                f"model.clsr: its budget is of whole batches, no task's own: with method.name "
                f"{self.method.name!r} it cannot be trained; set method.name to 'joint'"
            )
        return self


def recipe_type(job: str | None) -> type[BaseRecipe]:
    """What a recipe of a ``job`` is validated as; None is translation. Raises RecipeError."""
    if job is None:
        return Recipe
    jobs: dict[str, type[BaseRecipe]] = {"tagging": TaggingRecipe, "encoder": EncoderRecipe}
    if not isinstance(job, str) or job not in jobs:
        raise RecipeError(f"job: found {job!r}, must be {', '.join(jobs)}, or not there")
    return jobs[job]


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
) -> Recipe:
    """Read a recipe of translation as `load_any` does; RecipeError for one of another job."""
    return _translation(load_any(path, changes, size=size, variant=variant, seed=seed), str(path))


def load_any(
    path: Path | RecipeFile,
    changes: list[str] | None = None,
    *,
    size: str | None = None,
    variant: str | None = None,
    seed: int | None = None,
) -> BaseRecipe:
    """Read a recipe of any job; ``changes`` are ``section.key=value`` overrides with YAML values.

    ``size`` and ``variant`` choose where the file holds several, see
    :mod:`gradvac.experiment.recipe.variants`. Relative file names are taken from the recipe's own
    folder, and those of files that are not there from the working directory, as on a command line.
    Raises RecipeError.
    """
    file = path if isinstance(path, RecipeFile) else read_recipe_file(path)
    tree = file.choose(size, variant)
    if (file.path.parent / TASKS).exists():  # the recipe of a run, made again
        fill_in(tree)
    if seed is not None:
        tree["seed"] = seed
    for change in changes or []:
        _apply(tree, change)
    chosen = [f"{key} {tree[key]}" for key in ("size", "variant") if tree.get(key)]
    where = f"{file.path} ({', '.join(chosen)})" if chosen else str(file.path)
    return parse_any(tree, where).placed(partial(_placed, file.path.parent))


def _placed(folder: Path, name: str) -> str:
    """A file name made absolute: below ``folder``, or if it is only there, where one works."""
    if name.startswith(SHIPPED):
        return name
    below, here = folder / Path(name).expanduser(), Path(name).expanduser()
    there = os.path.exists(here) and not os.path.exists(below)  # False for what no path can be
    return str((here if there else below).resolve())


def parse_recipe(tree: dict[str, Any], where: str, run_code: bool = True) -> Recipe:
    """Validate a recipe of translation as `parse_any` does; RecipeError for another job."""
    return _translation(parse_any(tree, where, run_code), where)


def _translation(recipe: BaseRecipe, where: str) -> Recipe:
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{where}: job: this is a recipe of another job than translation")
    return recipe


def parse_any(tree: dict[str, Any], where: str, run_code: bool = True) -> BaseRecipe:
    """Validate a tree of plain values; ``where`` names it in errors.

    ``run_code``: make the method, for which a package it comes from may be imported. A recipe that
    is only read, such as that of a stranger's run, must not: its method is then taken on trust.
    """
    if key := _nan(tree):
        raise RecipeError(f"{where}: {key}: found nan, must be a number")
    model = recipe_type(tree.get("job"))
    try:
        return model.model_validate(tree, context={"run_code": run_code})
    except ValidationError as e:
        lines = dict.fromkeys(explain(error, tree, model) for error in e.errors())
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from e


def fill_in(tree: Any) -> Any:
    """The recipe of a run, with what keys that its version had not meant then."""
    if isinstance(tree, dict) and isinstance(method := tree.get("method"), dict):
        tree["method"] = of_a_run(method)
    if isinstance(tree, dict) and tree.get("job") is None:
        section = tree.setdefault("vocabulary", {})
        if isinstance(section, dict):
            section.setdefault("normalization", "nmt_nfkc")
    return tree


def with_normalization(recipe: Recipe, name: str) -> Recipe:
    """The recipe with the normalisation that its vocabulary has; others than ours are not told."""
    if name == recipe.vocabulary.normalization or name not in get_args(Normalization):
        return recipe
    section = recipe.vocabulary.model_copy(update={"normalization": name})
    return recipe.model_copy(update={"vocabulary": section})


def chooses_normalization(recipe: Recipe) -> bool:
    """Whether the recipe itself says how its vocabulary rewrites text."""
    given = recipe.vocabulary.path or recipe.training.start_from
    return not given and "normalization" in recipe.vocabulary.model_fields_set


def _nan(tree: Any, at: str = "") -> str:
    """The dotted key of a value that is not a number, or nothing: no bound excludes all of them."""
    if isinstance(tree, dict | list):
        entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
        found = (_nan(value, f"{at}.{key}".lstrip(".")) for key, value in entries)
        return next(filter(None, found), "")
    return at if isinstance(tree, float) and math.isnan(tree) else ""


def any_recipe(folder: Path) -> BaseRecipe:
    """The recipe a run of any kind was made from; reading it runs no code."""
    file = folder / RECIPE
    if not file.exists():
        raise RunError(f"{folder}: not a run folder: no readable recipe.yaml")
    try:
        tree = parse_yaml(read_text(file))
    except ValueError as e:
        raise RunError(f"{file}{e}") from e
    if not isinstance(tree, dict):
        raise RunError(f"{file}: not the recipe of a run: found {type(tree).__name__}")
    return parse_any(fill_in(tree), str(file), run_code=False)


def run_recipe(folder: Path) -> Recipe:
    """The recipe that a run of translation was made from; reading it runs no code."""
    return _translation(any_recipe(folder), str(folder / RECIPE))


def dump_recipe(recipe: BaseRecipe) -> str:
    """The complete recipe as YAML, defaults written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def resolve(name: str) -> Path:
    """A file of the recipe; ``shipped:NAME`` is a file that comes with the package."""
    if name.startswith(SHIPPED):
        return Path(str(importlib.resources.files("gradvac") / "assets" / name[len(SHIPPED) :]))
    return Path(name)


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


def _absolute(recipe: Recipe, file: Callable[[str], str]) -> Recipe:
    """Make every file name of the recipe independent of the working directory."""

    def place(name: str | None) -> str | None:
        return name if name is None else file(name)

    def move(sources: list[SourceSection]) -> list[SourceSection]:
        return [
            s.model_copy(
                update={
                    "path": place(s.path),
                    "paths": s.paths and {k: file(v) for k, v in s.paths.items()},
                }
            )
            for s in sources
        ]

    tokenize = recipe.search.bleu_tokenize
    if tokenize and tokenize.startswith(FILE) and tokenize != VOCABULARY:
        tokenize = f"{FILE}{place(tokenize.removeprefix(FILE))}"
    data = recipe.data
    texts = {part: move(getattr(data, part)) for part in ("train", "valid", "test")}
    corpus = place(data.corpus)
    if corpus is not None:
        for part, found in _of_corpus(resolve(corpus), data.languages).items():
            texts[part] = texts[part] or found
    return recipe.model_copy(
        update={
            "data": data.model_copy(update={**texts, "corpus": corpus}),
            "vocabulary": recipe.vocabulary.model_copy(
                update={"path": place(recipe.vocabulary.path)}
            ),
            "training": recipe.training.model_copy(
                update={"start_from": place(recipe.training.start_from)}
            ),
            "search": recipe.search.model_copy(update={"bleu_tokenize": tokenize}),
        }
    )


def _of_corpus(folder: Path, languages: list[str] | None) -> dict[str, list[SourceSection]]:
    """The text of a folder of `gradvac corpus`; training files of other languages are not read."""
    there = sorted((folder / "train").glob("*.tsv"))
    wanted = (*(languages or ()), ENGLISH)
    named = lambda code: any(same_language(code, w) for w in wanted)
    train = [f for f in there if not languages or all(map(named, f.stem.split("-")))]
    if not train:
        have = ", ".join(f.stem for f in there) or "no file"
        raise RecipeError(
            f"data.corpus: {folder}: no train/*.tsv to read; there is {have}. Make one with "
            "gradvac corpus debian or gradvac corpus import"
        )
    files = {"train": train, **{part: [folder / f"{part}.tsv"] for part in ("valid", "test")}}
    return {
        part: [SourceSection(path=str(file)) for file in own if file.exists()]
        for part, own in files.items()
    }
