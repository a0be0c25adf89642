"""How the vocabulary of a run rewrites text: new runs do not, runs from before the key still do."""

from pathlib import Path

import pytest
import yaml

from gradvac.errors import RunError
from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.recipe.variants import read_yaml
from gradvac.experiment.run.folder import any_recipe, run_recipe
from gradvac.experiment.training.prepare import prepare, share_text
from gradvac.experiment.translation.prepare import open_prepared
from gradvac.experiment.translation.recipe import Recipe

OLD = ["vocabulary.normalization=nmt_nfkc"]


def silent(text: str) -> None:
    pass


def as_before_the_key(run: Path) -> None:
    """Take the key out of a run, as an earlier version left it."""
    tree = read_yaml(run / "recipe.yaml")
    assert tree["vocabulary"].pop("normalization") == "nmt_nfkc"
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def rule_of(run: Path) -> tuple[str, str, str]:
    """What the recipe says by both of its readers, and what the vocabulary does."""
    said = run_recipe(run, Recipe), any_recipe(run)
    names = [recipe.model_dump()["vocabulary"]["normalization"] for recipe in said]
    return names[0], names[1], open_prepared(run).vocabulary.normalization


def test_a_new_run_keeps_text_as_it_is(toy, tmp_path):
    prepare(load_recipe(toy / "recipe.yaml"), tmp_path / "run", silent)
    assert rule_of(tmp_path / "run") == ("nfc",) * 3


def test_a_run_from_before_the_key_goes_on_and_can_be_made_again(toy, tmp_path):
    recipe, run = load_recipe(toy / "recipe.yaml"), tmp_path / "run"
    old = prepare(load_recipe(toy / "recipe.yaml", OLD), run, silent)
    as_before_the_key(run)
    assert rule_of(run) == ("nmt_nfkc",) * 3
    assert prepare(recipe, run, silent).vocabulary == old.vocabulary
    changed = load_recipe(toy / "recipe.yaml", ["vocabulary.normalization=nfc"])
    with pytest.raises(RunError, match=r"keys differ: vocabulary\.normalization"):
        prepare(changed, run, silent)
    again = prepare(load_recipe(run / "recipe.yaml"), tmp_path / "again", silent)
    assert again.vocabulary == old.vocabulary


def test_a_sweep_from_before_the_key_keeps_one_vocabulary(toy, tmp_path):
    sweep, first, second, other = (tmp_path / n for n in ("sweep", "first", "second", "other"))
    old = prepare(load_recipe(toy / "recipe.yaml", OLD), first, silent, sweep)
    for run in (first, *sweep.glob("text-*")):
        as_before_the_key(run)
    said: list[str] = []
    new = prepare(load_recipe(toy / "recipe.yaml"), second, said.append, sweep)
    assert new.vocabulary == old.vocabulary and rule_of(second) == ("nmt_nfkc",) * 3
    assert said == ["the text of this sweep was prepared with vocabulary.normalization: nmt_nfkc"]
    asked = load_recipe(toy / "recipe.yaml", ["vocabulary.normalization=nfc"])
    prepare(asked, other, silent, sweep)
    assert rule_of(other) == ("nfc",) * 3


def test_a_variant_that_chooses_a_rule_chooses_it_for_itself_alone(toy, tmp_path):
    sweep, chosen, base = (tmp_path / n for n in ("sweep", "chosen", "base"))
    prepare(load_recipe(toy / "recipe.yaml", OLD), chosen, silent, sweep)
    prepare(load_recipe(toy / "recipe.yaml"), base, silent, sweep)
    assert (rule_of(chosen), rule_of(base)) == (("nmt_nfkc",) * 3, ("nfc",) * 3)
    prepare(load_recipe(toy / "recipe.yaml"), base, silent, sweep)  # and goes on
    assert rule_of(base) == ("nfc",) * 3


def test_text_that_is_shared_keeps_its_rule_and_says_it(toy, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    prepare(load_recipe(toy / "recipe.yaml", OLD), first, silent)
    second.mkdir()
    share_text(first, second, load_recipe(toy / "recipe.yaml"))
    assert read_yaml(second / "recipe.yaml")["vocabulary"]["normalization"] == "nmt_nfkc"
    prepare(load_recipe(toy / "recipe.yaml"), second, silent)
    assert rule_of(second) == ("nmt_nfkc",) * 3


def test_the_rule_of_a_given_vocabulary_is_said_and_recorded(toy, tmp_path):
    said: list[str] = []
    given = load_recipe(toy / "recipe.yaml", ["vocabulary.path=shipped:start/vocabulary.model"])
    prepare(given, tmp_path / "run", said.append)
    line = "vocabulary.normalization: nmt_nfkc, that of the given vocabulary; nfc is of new ones"
    assert said[0] == line
    assert rule_of(tmp_path / "run") == ("nmt_nfkc",) * 3
    prepare(given, tmp_path / "run", silent)  # the same recipe resumes
