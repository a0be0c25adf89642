"""Keys of the sections that all kinds share: each is read, or rejected with what to do instead."""

import ast
from pathlib import Path

import pytest
import yaml

import gradvac
from gradvac.errors import RecipeError
from gradvac.experiment.recipe.kinds import KINDS, UNNAMED, find_kind
from gradvac.experiment.recipe.load import load_recipe, parse_recipe
from gradvac.experiment.recipe.sections import (
    BaseRecipe,
    MethodSection,
    SamplingSection,
    TrainingSection,
)
from gradvac.experiment.run.folder import any_recipe

EXPERIMENT = Path(gradvac.__file__).parent / "experiment"
OTHER = {
    "training.start_from": "somewhere",
    "training.shard": True,
    "training.label_smoothing": 0.1,
}
"""A value of each key that some kind ignores, which is not its default."""
IGNORED = [(kind, key) for kind in KINDS for key in find_kind(kind).recipe.ignored]
DATA = {
    "translation": {"data": {"train": [{"path": "t.tsv"}]}},
    "tagging": {
        "data": {"task": "pos", "languages": {"de": {"train": ["de.conllu"]}}},
        "model": {"encoder": "encoder"},
    },
    "encoder": {"data": {"parallel": [{"path": "t.tsv"}]}},
}


def recipe_of(kind: str) -> dict:
    return DATA[kind] | ({} if kind == UNNAMED else {"job": kind})


def attributes(*rooms: str) -> set[str]:
    """The names after a dot in the code of some rooms."""
    return {
        node.attr
        for room in rooms
        for file in (EXPERIMENT / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_shared_key_is_read_or_listed_as_ignored(kind):
    read = attributes("training", "recipe", "run") | attributes(kind)
    shared = {f"training.{key}" for key in TrainingSection.model_fields}
    shared |= {f"batches.{key}" for key in SamplingSection.model_fields}
    shared |= {f"method.{key}" for key in MethodSection.model_fields}
    shared |= set(BaseRecipe.model_fields)
    shared -= {"version", "method.module"}  # read while they are validated
    found = {key for key in shared if key.rpartition(".")[2] not in read}
    assert found == set(find_kind(kind).recipe.ignored)


def test_what_kinds_ignore():
    assert sorted(IGNORED) == [
        ("encoder", "training.label_smoothing"),
        ("encoder", "training.shard"),
        ("encoder", "training.start_from"),
        ("tagging", "training.shard"),
        ("tagging", "training.start_from"),
    ]


@pytest.mark.parametrize(("kind", "key"), IGNORED)
def test_a_key_that_a_kind_ignores_is_rejected_by_name(kind, key):
    instead = find_kind(kind).recipe.ignored[key]
    section, _, name = key.partition(".")
    tree = recipe_of(kind) | {section: {name: OTHER[key]}}
    with pytest.raises(RecipeError) as problem:
        parse_recipe(tree, "r.yaml")
    assert str(problem.value) == (
        f"r.yaml: {key}: found {OTHER[key]!r}; a recipe with job: {kind} does not read it; "
        f"{instead}"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_keys_at_their_defaults_are_accepted(kind):
    """As in the recipe of a run, which says all of them."""
    recipe = parse_recipe(recipe_of(kind), "r.yaml")
    assert parse_recipe(recipe.model_dump(mode="json"), "run") == recipe


@pytest.mark.parametrize(("kind", "key"), IGNORED)
def test_runs_of_versions_that_ignored_a_key_silently_are_read(kind, key, tmp_path):
    """And their recipes, made again, are what those versions made of them."""
    plain = parse_recipe(recipe_of(kind), "r.yaml")
    tree = plain.model_dump(mode="json")
    section, _, name = key.partition(".")
    tree[section][name] = OTHER[key]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (tmp_path / "tasks.json").write_text("{}", encoding="utf-8")
    assert any_recipe(tmp_path).training == plain.training
    assert load_recipe(tmp_path / "recipe.yaml").training == plain.training
