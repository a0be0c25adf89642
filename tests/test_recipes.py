"""Every recipe that comes with the project: valid at every size, and runnable at size smoke."""

import json
import socket
from pathlib import Path

import pytest
from rich.console import Console

from gradvac.experiment.recipe.load import load_recipe, read_recipe_file
from gradvac.experiment.tagging.job import TaggingJob
from gradvac.experiment.training.display import Display
from gradvac.experiment.training.prepare import prepare
from gradvac.experiment.training.train import Trainer
from gradvac.experiment.translation.evaluate import evaluate_run
from gradvac.experiment.translation.job import TranslationJob
from tools.numbers import LANGUAGES, write_corpus

ROOT = Path(__file__).parents[1] / "recipes"
PAPERS = sorted(ROOT.glob("*/*.yaml"))
NAMES = [str(path.relative_to(ROOT)) for path in PAPERS]


@pytest.fixture
def corpus(tmp_path):
    """Where `gradvac corpus debian` would have put training text."""
    (tmp_path / "train").mkdir()
    for code in {*"fr es de cs ru lt fi hi kk id gu tr".split(), *LANGUAGES}:
        (tmp_path / "train" / f"en-{code}.tsv").touch()
    return tmp_path


@pytest.mark.parametrize("path", PAPERS, ids=NAMES)
def test_every_size_and_variant_is_valid(path, corpus):
    file = read_recipe_file(path)
    assert [*file.sizes][:2] == ["smoke", "small"]
    assert path.parent.name in ("evidence", "lab") or {*file.sizes} & {"gpu", "paper"}
    changes = [] if path.parent.name == "tagging" else [f"data.corpus={corpus}"]
    for size in file.sizes:
        for variant in file.variants or [None]:
            recipe = load_recipe(file, changes, size=size, variant=variant)
            assert (recipe.size, recipe.variant) == (size, variant)
            rule = recipe.method.options.get("warmup_steps")
            assert rule is None or rule == recipe.training.warmup  # CATS begins after Adam's


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


TEXT = [n for n in NAMES if not n.startswith("tagging/")]  # data sets of the user's own


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """What `python -m tools.numbers` would have made, of words that any package may have."""
    folder = tmp_path_factory.mktemp("numbers")
    with pytest.MonkeyPatch.context() as patch:
        letters = lambda n, code: " ".join(code + "abcdefghij"[int(digit)] for digit in str(n))
        patch.setattr("tools.numbers.words", letters)
        patch.setattr("tools.numbers.version", lambda name: "0.0")
        write_corpus(folder, 400, 5, 100, seed=1)
    return folder


@pytest.fixture(scope="module")
def trained():
    """What was trained so far: variants that differ from it in data alone are not trained again."""
    return []


@pytest.mark.parametrize("path", [ROOT / name for name in TEXT], ids=TEXT)
def test_every_variant_runs_at_size_smoke(path, store, numbers, trained):
    """They train in this process on shared text; the last one of each recipe is scored too."""
    file = read_recipe_file(path)
    changes = ["device=cpu", "data.valid=[]"]  # validation takes longer than all the rest
    if path.parent.name == "lab":
        model = numbers / "vocabulary.model"
        changes = ["device=cpu", f"data.corpus={numbers}", f"vocabulary.path={model}"]
    variants = list(file.variants) or [None]
    for variant in variants:
        recipe = load_recipe(file, changes, size="smoke", variant=variant)
        how = (recipe.model, recipe.batches, recipe.method)
        if how in trained and variant != variants[-1]:
            continue
        trained.append(how)
        run = store / path.parent.name / path.stem / (variant or "run")
        prepared = prepare(recipe, run, lambda text: None, store)
        assert Trainer(TranslationJob(prepared), Display(Console(quiet=True))).train() == 0
    scores = evaluate_run(run, say=lambda text: None)
    assert set(scores.directions) == set(prepared.tasks)
    if recipe.method.options.get("tasks") == "low":
        assert "low" in prepared.levels.values()  # so that there is something to edit


TAGGING = [path for path in PAPERS if path.parent.name == "tagging" and path.stem != "encoder"]


@pytest.mark.parametrize("size", ["smoke", "real"])
@pytest.mark.parametrize("path", TAGGING, ids=[path.stem for path in TAGGING])
def test_tagging_runs_without_the_network(path, size, tmp_path, monkeypatch):
    """On a toy text of the recipe's own labels, since the data sets are the user's, as a real
    encoder is.
    """

    def refused(*_: object) -> None:
        raise OSError("a test asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    file = read_recipe_file(path)
    tags = {"ner": ["B-PER", "B-LOC"], "pos": ["NOUN", "VERB"]}[file.body["data"]["task"]]
    words = "".join(f"word{n} {tag}\n" for n, tag in enumerate(tags)) + "\n"
    (tmp_path / "text").write_text(words * 9, encoding="utf-8")
    (tmp_path / "held-out").write_text(words.replace("word0", "other") * 9, encoding="utf-8")
    own = {part: [str(tmp_path / "held-out")] for part in ("valid", "test")}
    own["train"] = [str(tmp_path / "text")]
    languages = {code: {"format": "two-column", **own} for code in ("de", "fr")}
    changes = ["device=cpu", f"data.languages={json.dumps(languages)}"]
    if size == "real":
        changes.append("model.encoder=shipped:encoder")
    recipe = load_recipe(file, changes, size=size, variant=next(iter(file.variants)))
    prepared = prepare(recipe, tmp_path / "run", lambda text: None, tmp_path)
    assert Trainer(TaggingJob(prepared), Display(Console(quiet=True))).train() == 0
