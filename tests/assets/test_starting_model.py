"""The shipped starting models: small enough, described, and recognisably translators."""

import importlib.resources
import json
import re
from pathlib import Path

import pytest
import sacrebleu

from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.translation.filter import SHIPPED_MODELS
from gradvac.experiment.translation.model_folder import find_model, trained_directions
from gradvac.text.account import Account
from gradvac.text.readers import read_rows
from gradvac.text.sources import Source
from gradvac.translation.translate import Translator

RECIPES = {
    "shipped:start": "starting-model-to-en.yaml",
    "shipped:start-from-en": "starting-model-from-en.yaml",
}
pytestmark = pytest.mark.parametrize("name", SHIPPED_MODELS)


def test_size_is_at_most_eight_mebibytes_with_its_vocabulary(name):
    files = [resolve(name) / n for n in ("model.safetensors", "vocabulary.model", "model.json")]
    assert sum(f.stat().st_size for f in files) <= 8 * 2**20


def test_it_is_what_its_recipe_makes(name):
    folder = Path(__file__).parents[2] / "recipes"
    recipe = load_recipe(folder / RECIPES[name])
    first = load_recipe(folder / "starting-model.yaml")  # whose vocabulary it goes on with
    found = find_model(resolve(name))
    assert len(found.vocabulary) == first.vocabulary.size
    assert found.config.encoder_layers == 3 and found.config.d_model == 192
    assert [d.name for d in trained_directions(resolve(name))] == [*recipe.data.directions]
    assert set(found.vocabulary.languages) >= {"en", "hi", "ne", "kk", "xh"}
    model = found.load()
    count = sum(p.numel() for p in model.parameters())
    assert f"{count:,}" in (resolve(name) / "README.md").read_text()


def test_held_out_strings_come_out_recognisable(name):
    """As its README says, within what 60 strings and a greedy search may lose."""
    test = importlib.resources.files("gradvac") / "assets" / "corpus" / "test.tsv.xz"
    rows = list(read_rows(Source(path=Path(str(test))), Account()))[:60]
    readme = (resolve(name) / "README.md").read_text()
    found = find_model(resolve(name))
    translator = Translator(found.load(), found.vocabulary, beam=1)
    for direction in trained_directions(resolve(name))[:3]:
        source, target = direction.source, direction.target
        said = translator.translate([r.texts[source] for r in rows], [target] * len(rows))
        references = [[r.texts[target] for r in rows]]
        stated = re.search(rf"\| {direction.name} \| [\d.]+ \| ([\d.]+) \|", readme)
        score = sacrebleu.corpus_chrf(said, references, word_order=2).score
        assert stated and abs(score - float(stated[1])) < 8


def test_its_shape_is_plain_json(name):
    assert json.loads((resolve(name) / "model.json").read_text())["vocabulary_size"] == 8000
