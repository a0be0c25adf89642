"""The shipped starting model: small enough, described, and recognisably a translator."""

import importlib.resources
import json
from pathlib import Path

import sacrebleu

from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.translation.model_folder import find_model
from gradvac.text.account import Account
from gradvac.text.readers import read_rows
from gradvac.text.sources import Source
from gradvac.translation.translate import Translator

START = resolve("shipped:start")


def test_size_is_at_most_eight_mebibytes_with_its_vocabulary():
    files = [START / n for n in ("model.safetensors", "vocabulary.model", "model.json")]
    assert sum(f.stat().st_size for f in files) <= 8 * 2**20


def test_it_is_what_its_recipe_makes():
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "starting-model.yaml")
    found = find_model(START)
    assert len(found.vocabulary) == recipe.vocabulary.size
    assert found.config.encoder_layers == 3 and found.config.d_model == 192
    assert set(found.vocabulary.languages) >= {"en", "hi", "ne", "kk", "xh"}
    model = found.load()
    count = sum(p.numel() for p in model.parameters())
    assert f"{count:,}" in (START / "README.md").read_text()


def test_held_out_strings_come_out_recognisable():
    """A floor well under the scores in its README (54.8, 54.4, 52.8): greedy, 60 strings."""
    test = importlib.resources.files("gradvac") / "assets" / "corpus" / "test.tsv.xz"
    rows = list(read_rows(Source(path=Path(str(test))), Account()))[:60]
    found = find_model(START)
    translator = Translator(found.load(), found.vocabulary, beam=1)
    for code in ("fr", "es", "de"):
        english = translator.translate([r.texts[code] for r in rows], ["en"] * len(rows))
        references = [[r.texts["en"] for r in rows]]
        assert sacrebleu.corpus_chrf(english, references, word_order=2).score > 45


def test_its_shape_is_plain_json():
    assert json.loads((START / "model.json").read_text())["vocabulary_size"] == 8000
