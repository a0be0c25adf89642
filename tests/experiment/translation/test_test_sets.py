"""Several named test sets: kept out of training, scored, compared and resumed apart."""

import csv
import json
import math
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RecipeError, RunError
from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.sweep.sweep import Job
from gradvac.experiment.training.kind import score_run
from gradvac.experiment.training.prepare import prepare
from tests.build import make_toy, toy_recipe, trained, write_json, write_recipe

runner = CliRunner()
BOOK = [("the dog sleeps", "speels god eht"), ("a cat eats", "stae tac a"), ("sun", "nus")]


def recipe_of_two() -> dict:
    tree = toy_recipe()
    tree["data"]["test"] = {"app": {"path": "test.tsv"}, "book": [{"path": "book.tsv"}]}
    tree["training"]["steps"] = 4
    return tree


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    toy = make_toy(tmp_path_factory.mktemp("two"), recipe_of_two())
    lines = ["en\tfr", *(f"{en}\t{fr}" for en, fr in BOOK)]
    (toy / "book.tsv").write_text("\n".join(lines) + "\n")
    with (toy / "train.tsv").open("a") as train:
        train.write(f"{BOOK[0][0]}\tautre chose\t\n")  # one side is that of a test sentence
    return trained(toy, toy / "run")


def scored(folder: Path) -> dict[str, int]:
    found = json.loads((folder / "scores.json").read_text())["directions"]
    return {name: own["sentences"] for name, own in found.items()}


def test_each_set_is_scored_and_written_apart(run: Path) -> None:
    done = runner.invoke(app, ["evaluate", str(run)])
    assert done.exit_code == 0, done.output
    assert scored(run) == {"fr-en": 5, "ne-en": 5}
    assert scored(run / "tests" / "book") == {"fr-en": 3}
    texts = (run / "tests" / "book" / "translations.jsonl").read_text().splitlines()
    assert [json.loads(x)["reference"] for x in texts] == [en for en, _ in BOOK]
    names = [json.loads((f / "scores.json").read_text())["test"] for f in (run, run / "tests/book")]
    assert names == ["app", "book"]
    assert "run: app" in done.output and "run: book" in done.output


def test_no_set_repeats_training_text(run: Path) -> None:
    account = json.loads((run / "data" / "account.json").read_text())["corpora"]
    dropped = account[next(name for name in account if name.startswith("train"))]["dropped"]
    assert sum(n["count"] for why, n in dropped.items() if "evaluation" in why) == 1


def test_one_set_can_be_asked_for(run: Path) -> None:
    before = (run / "scores.json").read_bytes()
    (run / "tests" / "book" / "scores.json").unlink()
    job = Job("joint", load_recipe(run / "recipe.yaml"), run)
    assert not job.done
    assert runner.invoke(app, ["evaluate", str(run), "--test", "book"]).exit_code == 0
    assert job.done and (run / "scores.json").read_bytes() == before
    with pytest.raises(RunError, match="--test bok: its test sets are app, book"):
        list(score_run(run, {"test": ["bok"]}, lambda line: None))


def test_sets_are_compared_apart(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    command = ["compare", str(run), "--test", "none", "--out", str(out)]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "test set app" in done.output and "test set book" in done.output
    for name, folder in (("app", run), ("book", run / "tests" / "book")):
        rows = list(csv.DictReader((tmp_path / f"table-{name}.csv").read_text().splitlines()))
        bleu = {r["column"]: float(r["mean"]) for r in rows if r["metric"] == "bleu"}
        own = json.loads((folder / "scores.json").read_text())["directions"]
        assert bleu["fr-en"] == pytest.approx(own["fr-en"]["bleu"])
        assert ("ne-en" in bleu) == (name == "app")
    done = runner.invoke(app, [*command, "--test-set", "book"])
    assert "test set app" not in done.output and "test set book" in done.output
    done = runner.invoke(app, [*command, "--test-set", "bok"])
    assert isinstance(done.exception, RunError) and "app, book" in str(done.exception)


def test_fewer_sentences_never_replace_more(run: Path) -> None:
    before = [(run / name).read_bytes() for name in ("scores.json", "translations.jsonl")]
    done = runner.invoke(app, ["evaluate", str(run), "--test", "app", "--sentences", "2"])
    assert done.exit_code == 0 and "kept, it has more sentences" in " ".join(done.output.split())
    assert before == [(run / n).read_bytes() for n in ("scores.json", "translations.jsonl")]
    few = json.loads((run / "scores-first-2.json").read_text())
    assert {d["sentences"] for d in few["directions"].values()} == {2}
    assert len((run / "translations-first-2.jsonl").read_text().splitlines()) == 4


def test_scores_made_otherwise_are_replaced_aloud(run: Path) -> None:
    again = ["evaluate", str(run), "--test", "app"]
    assert "replaced" not in runner.invoke(app, again).output
    done = runner.invoke(app, [*again, "--beam", "1", "--checkpoint", "last"])
    assert "replaced; before: checkpoint best, beam 2" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"path": "test.tsv"}, r"data.test: write one test set as a list"),
        ({"app": []}, r"data.test: the test set 'app' names no source of text"),
        ({"app": {"pth": "a"}}, r"data.test.app.pth: unknown key; did you mean 'path'"),
        ({"a/b": {"path": "a"}}, r"data.test"),
        ([{"pth": "a"}], r"data.test.0.pth: unknown key; did you mean 'path'"),
    ],
)
def test_what_is_wrong_with_a_set_is_named(tmp_path: Path, given: object, words: str) -> None:
    tree = recipe_of_two()
    tree["data"]["test"] = given
    with pytest.raises(RecipeError, match=words):
        load_recipe(write_recipe(tmp_path, tree))


def test_more_steps_remove_the_scores_of_every_set(run: Path) -> None:
    tree = yaml.safe_load((run.parent / "recipe.yaml").read_text())
    tree["training"]["steps"] = 6
    recipe = run.parent / "longer.yaml"
    write_json(recipe, tree)
    done = runner.invoke(app, ["train", str(recipe), "--run", str(run)])
    assert done.exit_code == 0, done.output
    assert json.loads((run / "done.json").read_text())["step"] == 6
    assert not list(run.rglob("scores.json"))


def test_relative_levels_are_said_with_their_limits(tmp_path: Path) -> None:
    toy = make_toy(tmp_path)
    changes = ["data.levels=null", "training.steps=2"]
    said: list[str] = []
    prepare(load_recipe(toy / "recipe.yaml", changes), toy / "run", said.append)
    pairs = json.loads((toy / "run" / "tasks.json").read_text())
    largest = max(info["pairs"] for info in pairs.values())
    (line,) = [text for text in said if "resource levels" in text]
    assert f"high is {math.ceil(largest / 2)} training pairs and more" in line
    assert f"low under {math.ceil(largest / 8)}," in line
    said.clear()
    prepare(load_recipe(toy / "recipe.yaml"), toy / "set", said.append)
    assert not any("resource levels" in text for text in said)  # the recipe sets them
