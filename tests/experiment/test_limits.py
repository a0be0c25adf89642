"""Keys that make an experiment smaller: pairs of a direction, sentences that are scored."""

import pytest
from rich.console import Console

from gradvac.errors import RecipeError
from gradvac.experiment.display import Display
from gradvac.experiment.evaluate import evaluate_run
from gradvac.experiment.prepare import prepare
from gradvac.experiment.recipe import load_recipe
from gradvac.experiment.train import Trainer
from gradvac.experiment.translation_job import TranslationJob


def test_pairs_can_be_cut_down_for_all_or_some(toy, tmp_path):
    def pairs(limit: str) -> dict[str, int]:
        recipe = load_recipe(toy / "recipe.yaml", [f"data.max_pairs={limit}"])
        prepared = prepare(recipe, tmp_path / limit, lambda text: None)
        encoded = {task: len(own) for task, own in prepared.train.items()}
        assert encoded == {task: info.pairs for task, info in prepared.tasks.items()}
        return encoded

    everything = pairs("null")
    assert everything["fr-en"] > everything["ne-en"] > 15
    assert pairs("15") == {"fr-en": 15, "ne-en": 15}
    # A direction that is not of this run may be of another variant's.
    assert pairs("{fr-en: 7, de-en: 3}") == {**everything, "fr-en": 7}


def test_limits_are_of_directions(toy):
    with pytest.raises(RecipeError, match=r"data\.max_pairs: .*'fr'"):
        load_recipe(toy / "recipe.yaml", ["data.max_pairs={fr: 7}"])


def test_the_vocabulary_is_of_the_languages_named_whatever_the_directions(toy, tmp_path):
    """Nepali is written in capitals, which nothing else is; a bilingual run has no other pieces."""

    def pieces(name: str, *changes: str) -> set[str]:
        recipe = load_recipe(toy / "recipe.yaml", ["vocabulary.size=320", *changes])
        vocabulary = prepare(recipe, tmp_path / name, lambda text: None).vocabulary
        names = map(vocabulary.pieces.id_to_piece, range(len(vocabulary)))
        return {piece for piece in names if not piece.startswith("<")}

    capitals = lambda found: any(piece != piece.lower() for piece in found)
    both = pieces("both")
    assert capitals(both) and not capitals(pieces("french", "data.languages=[fr]"))
    assert pieces("one", "data.directions=[fr-en]", "data.languages=[fr, ne]") == both


def test_a_recipe_may_score_the_first_sentences_only(toy, tmp_path):
    changes = ["search.sentences=2", "training.steps=1", "search.beam=1"]
    prepared = prepare(load_recipe(toy / "recipe.yaml", changes), tmp_path / "run", lambda t: None)
    Trainer(TranslationJob(prepared), Display(Console(quiet=True))).train()
    count = lambda **flags: {
        s.sentences
        for s in evaluate_run(prepared.folder, say=lambda t: None, **flags).directions.values()
    }
    assert count() == {2}
    assert count(sentences=3) == {3}  # the command's word is the last
