"""Directions never trained: asked for in a recipe, scored, marked, averaged apart."""

import json
from pathlib import Path

import pytest
import sacrebleu
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RecipeError
from gradvac.experiment.report import write_report
from gradvac.experiment.translation.zero_shot import zero_shot_directions
from gradvac.text.readers import Row
from tests.build import make_toy

runner = CliRunner()
BOTH = ["fr-en", "ne-en", "en-fr", "en-ne"]
ROWS = [Row({"en": "a", "fr": "b"}, "1"), Row({"fr": "b", "ne": "c"}, "2")]


def test_all_is_what_the_model_reads_and_writes_and_the_test_set_has():
    assert zero_shot_directions("all", BOTH, ROWS) == ["fr-ne", "ne-fr"]
    assert zero_shot_directions("all", BOTH, ROWS[:1]) == []
    assert zero_shot_directions("all", BOTH[:2], ROWS) == []  # it writes English alone
    assert zero_shot_directions([], BOTH, ROWS) == []


@pytest.mark.parametrize(
    ("asked", "trained", "words"),
    [
        ("fr-en", BOTH, "fr-en: is trained"),
        ("de-fr", BOTH, "'de' is never a source; the model reads fr, ne, en"),
        ("fr-ne", BOTH[:2], "'ne' is never a target; the model writes en"),
        ("fr-ne", BOTH, "fr-ne: no row of data.test has both"),
    ],
)
def test_what_cannot_be_zero_shot_is_refused(asked, trained, words):
    with pytest.raises(RecipeError, match=words):
        zero_shot_directions([asked], trained, ROWS[:1])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = make_toy(tmp_path_factory.mktemp("zero"))
    sets = ["data.directions=both", "training.steps=2", "search.zero_shot=[fr-ne]"]
    flags = [word for change in sets for word in ("--set", change)]
    command = ["train", str(folder / "recipe.yaml"), "--run", str(folder / "run"), *flags]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    return folder / "run"


def evaluated(run: Path, *flags: str) -> tuple[dict, str]:
    done = runner.invoke(app, ["evaluate", str(run), *flags])
    assert done.exit_code == 0, done.output
    return json.loads((run / "scores.json").read_text()), done.output


def test_it_is_scored_marked_and_averaged_apart(run):
    scores, output = evaluated(run)
    each = scores["directions"]
    assert [name for name, s in each.items() if s.get("zero_shot")] == ["fr-ne"]
    lines = [json.loads(x) for x in (run / "translations.jsonl").read_text().splitlines()]
    pairs = [x for x in lines if x["direction"] == "fr-ne"]
    bleu = sacrebleu.corpus_bleu(
        [x["hypothesis"] for x in pairs], [[x["reference"] for x in pairs]]
    )
    assert each["fr-ne"]["bleu"] == pytest.approx(bleu.score)
    mean = sum(each[d]["chrf"] for d in BOTH) / 4
    assert scores["averages"]["all"]["chrf"] == pytest.approx(mean)
    assert scores["averages"]["zero-shot"]["chrf"] == each["fr-ne"]["chrf"]
    assert "Indo-Iranian" in scores["averages"] and "zero-shot" in output


def test_the_report_averages_it_apart(run, tmp_path):
    evaluated(run)
    page = write_report(tmp_path / "report.html", [run], title="zero-shot").read_text()
    assert page.count(">zero-shot</th>") == 2  # of chrF++ and BLEU
    assert "other directions" not in page and "<td>zero-shot</td>" in page


def test_every_direction_has_an_off_target_rate_beside_the_identifiers_error(run):
    scores, output = evaluated(run)
    for name, found in scores["directions"].items():
        assert 0 <= found["off_target"] <= 100, name
        assert 0 <= found["off_target_of_references"] <= 100, name
    # The toy's Nepali is in Latin letters: the identifier takes it for another language.
    assert scores["directions"]["en-ne"]["off_target_of_references"] > 50
    assert "off %" in output and "refs %" in output


def test_the_command_asks_for_others_and_the_recipe_is_refused_early(run, tmp_path):
    scores, _ = evaluated(run, "--zero-shot", "all", "--bleu-tokenize", "spm:vocabulary")
    zero = [name for name, s in scores["directions"].items() if s.get("zero_shot")]
    assert zero == ["fr-ne", "ne-fr"]
    assert "tok:spm-" in scores["signatures"]["BLEU"]
    recipe = make_toy(tmp_path) / "recipe.yaml"
    sets = ["--set", "search.zero_shot=[fr-ne]", "--run", str(tmp_path / "run")]
    done = runner.invoke(app, ["train", str(recipe), *sets])
    assert isinstance(done.exception, RecipeError) and "never a target" in str(done.exception)


def test_the_key_is_checked_when_the_recipe_is_read(tmp_path):
    recipe = make_toy(tmp_path) / "recipe.yaml"
    for change, words in {
        "search.zero_shot=[fr]": "search.zero_shot: 'fr' is not a direction",
        "search.bleu_tokenize=13b": "did you mean '13a'",
    }.items():
        done = runner.invoke(app, ["train", str(recipe), "--set", change])
        assert isinstance(done.exception, RecipeError) and words in str(done.exception)
