"""Keys that make an experiment smaller: pairs of a direction, sentences that are scored."""

import pytest

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.training.build import device_of
from gradvac.experiment.training.notes import notes, unreached
from gradvac.experiment.training.prepare import prepare
from gradvac.experiment.translation.evaluate import evaluate_run
from tests.build import trained


def test_pairs_can_be_cut_down_for_all_or_some(toy, tmp_path):
    said: list[str] = []

    def pairs(limit: str) -> dict[str, int]:
        recipe = load_recipe(toy / "recipe.yaml", [f"data.max_pairs={limit}"])
        prepared = prepare(recipe, tmp_path / limit, said.append)
        encoded = {task: len(own) for task, own in prepared.train.items()}
        assert encoded == {task: info.pairs for task, info in prepared.tasks.items()}
        return encoded

    everything = pairs("null")
    assert everything["fr-en"] > everything["ne-en"] > 15
    assert pairs("15") == {"fr-en": 15, "ne-en": 15}
    # A direction that is not of this run may be of another variant's.
    assert not any("data.max_pairs" in line for line in said)
    assert pairs("{fr-en: 7, de-en: 3}") == {**everything, "fr-en": 7}
    assert "data.max_pairs: de-en: not trained here, so it limits nothing" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["keep_every=7"], "keep_every 7 keeps nothing: with checkpoints at every 4 steps the fi"),
        (["keep_every=7"], "the first to keep is at step 28 of 12"),
        (
            ["keep_every=6"],
            "keep_every 6: with checkpoints at every 4 steps one is kept at every 1",
        ),
        (["log_every=13"], "training.log_every 13: no line in 12 steps"),
        (["keep_every=4", "log_every=12"], ""),
    ],
)
def test_what_a_run_never_reaches_is_said(toy, changes, words):
    recipe = load_recipe(toy / "recipe.yaml", [f"training.{change}" for change in changes])
    said = unreached(recipe.training)
    assert any(words in line for line in said) if words else not said


@pytest.mark.parametrize("there", [True, False])
def test_a_precision_that_the_device_is_slow_in_is_said(toy, monkeypatch, there):
    monkeypatch.setattr("gradvac.experiment.training.notes.has_bf16", lambda device: there)
    said = {
        precision: notes(
            load_recipe(toy / "recipe.yaml", [f"training.precision={precision}"]).training,
            device_of("cpu"),
        )
        for precision in ("auto", "fp32", "bf16")
    }
    assert not said["auto"] and not said["fp32"] and bool(said["bf16"]) != there


@pytest.mark.parametrize("name", ["meta", "cpu:x", "xla", "hip", "cuda:99", ""])
def test_a_device_that_cannot_compute_is_refused(name):
    with pytest.raises(RecipeError, match=rf"device: '{name}' "):
        device_of(name)
    assert device_of("cpu").type == "cpu"


def test_the_largest_seed_trains(toy, tmp_path):
    trained(toy, tmp_path / "run", [f"seed={2**64 - 1}", "training.steps=1"])


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
    run = trained(toy, tmp_path / "run", changes)
    count = lambda **flags: {
        s.sentences for s in evaluate_run(run, say=lambda t: None, **flags).directions.values()
    }
    assert count() == {2}
    assert count(sentences=3) == {3}  # the command's word is the last
